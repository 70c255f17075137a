// How loud the microphone is: bars that pass by, and a ring around the button.

/** Milliseconds between bars, and where less motion is wanted; their width and the gap between them, in pixels. */
const EVERY = 60;
const EVERY_CALM = 500;
const BAR = 3;
const GAP = 3;

export class Wave {
  #canvas;
  #disc;
  #levels = [];
  #frame = 0;
  #next = 0;

  constructor(canvas, disc) {
    [this.#canvas, this.#disc] = [canvas, disc];
  }

  /** Show what `read` returns, from 0 to 1. */
  start(read) {
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.#levels = [];
    let peak = 0;
    const step = (now) => {
      this.#frame = requestAnimationFrame(step);
      const level = read();
      peak = Math.max(peak, level);
      if (!calm) this.#disc.style.setProperty("--level", level.toFixed(3));
      if (now < this.#next) return;
      this.#next = now + (calm ? EVERY_CALM : EVERY);
      this.#levels.push(peak);
      this.#canvas.ariaValueNow = Math.round(100 * peak);
      peak = 0;
      this.#draw();
    };
    cancelAnimationFrame(this.#frame);
    this.#frame = requestAnimationFrame(step);
  }

  stop() {
    cancelAnimationFrame(this.#frame);
    this.#disc.style.setProperty("--level", 0);
  }

  #draw() {
    const canvas = this.#canvas, { clientWidth: width, clientHeight: height } = canvas;
    const scale = devicePixelRatio;
    if (canvas.width !== Math.round(width * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    const most = Math.floor(width / (BAR + GAP));
    this.#levels = this.#levels.slice(-most);
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    context.fillStyle = getComputedStyle(canvas).color;
    this.#levels.forEach((level, index) => {
      const size = Math.max(BAR, height * level ** 1.5);
      const x = width - (this.#levels.length - index) * (BAR + GAP);
      context.globalAlpha = 0.25 + 0.75 * Math.min(1, 1.6 * level);
      context.beginPath();
      context.roundRect(x, (height - size) / 2, BAR, size, BAR / 2);
      context.fill();
    });
  }
}
