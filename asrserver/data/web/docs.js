// /docs: the server's OpenAPI document, to be read by people.

import { client, guard } from "./server.js";
import { switchLanguage, text, translate } from "./texts.js";
import { element } from "./transcript.js";

const $ = (id) => document.getElementById(id);

/** Schemas in schemas, at most: deeper ones are named only. */
const MAX_DEPTH = 5;

let spec;

async function load() {
  spec = await (await client.fetch("api/v1/openapi.json")).json();
  show();
  showTarget();
}

/** Everything, in the language that was chosen; the document itself is in English. */
function show() {
  $("version").textContent = text("docs_version", { version: spec.info.version });
  $("key-hint").hidden = !client.key;
  $("document").hidden = Boolean(client.key); // a link shows no key
  fill();
  const groups = new Map((spec.tags ?? []).map((tag) => [tag.name, { ...tag, operations: [] }]));
  for (const [path, methods] of Object.entries(spec.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const name = operation.tags?.[0] ?? "Other";
      if (!groups.has(name)) groups.set(name, { name, operations: [] });
      groups.get(name).operations.push({ path, method, ...operation });
    }
  }
  const used = [...groups.values()].filter(({ operations }) => operations.length);
  $("groups").replaceChildren(...used.map(group));
  $("contents").replaceChildren(link("group", "#quick", text("docs_quick")), ...used.flatMap(contents));
}

/** Put this server's address into the examples, and the words between them. */
function fill() {
  for (const paragraph of document.querySelectorAll("[data-prose]")) {
    paragraph.replaceChildren(...prose("p", "", text(paragraph.dataset.prose)).childNodes);
  }
  const http = client.url.href.replace(/\/$/, "");
  const values = { http, ws: http.replace(/^http/, "ws"), key: keyOption() };
  for (const example of document.querySelectorAll("[data-fill]")) {
    example.dataset.source ??= example.textContent;
    example.textContent = example.dataset.source.replace(/\{(http|ws|key)\}/g, (_, name) => values[name]);
  }
}

const keyOption = () => (client.key ? ' -H "Authorization: Bearer $KEY"' : "");

// -- groups and operations ------------------------------------------------------------------------------------------

const idOf = ({ name }) => "of-" + name.toLowerCase().replace(/\W+/g, "-");

function contents(tag) {
  const entries = tag.operations.map(({ method, path, operationId }) => {
    return link("", `#${operationId}`, method === "delete" ? `DELETE ${path}` : path);
  });
  return [link("group", `#${idOf(tag)}`, tag.name), ...entries];
}

function link(className, target, content) {
  const made = element("a", className, content);
  made.href = target;
  return made;
}

function group(tag) {
  const section = document.createElement("section");
  section.id = idOf(tag);
  section.append(element("h2", "", tag.name), prose("p", "", tag.description ?? ""), ...tag.operations.map(operation));
  return section;
}

function operation(what) {
  const box = element("details", "operation");
  box.id = what.operationId;
  const summary = document.createElement("summary");
  const method = "101" in what.responses ? "ws" : what.method;
  summary.append(
    element("span", `method ${what.method}`, method.toUpperCase()),
    element("span", "path", what.path),
    element("span", "what", what.summary ?? ""),
  );
  box.append(summary);
  box.addEventListener("toggle", () => box.children.length === 1 && box.append(detail(what)));
  return box;
}

function detail(what) {
  const parts = element("div", "detail");
  if (what.description) parts.append(prose("p", "", what.description));
  const parameters = (what.parameters ?? []).map(resolve);
  if (parameters.length) parts.append(element("h3", "", text("docs_parameters")), list(parameters.map(parameter)));
  for (const [type, { schema }] of Object.entries(what.requestBody?.content ?? {})) {
    parts.append(element("h3", "", text("docs_body", { type })), list([value("", schema, "", 0)]));
  }
  parts.append(element("h3", "", text("docs_answers")), list(Object.entries(what.responses).map(answer)));
  if (!("101" in what.responses)) parts.append(element("h3", "", text("docs_example")), element("pre", "", curl(what)));
  return parts;
}

function parameter({ name, schema, description, required, in: place }) {
  return value(name, schema, description, 0, [place !== "query" && place, required && place !== "path" && text("docs_required")]);
}

function answer([status, response]) {
  const { description, content = {} } = resolve(response);
  const row = prose("li", "", description ?? "");
  row.prepend(element("code", "", status), " ");
  for (const [type, { schema }] of Object.entries(content)) {
    row.append(" ", element("span", "type", type));
    if (fieldsOf(schema).length) row.append(folded(schema, 0));
  }
  return row;
}

/** A request that can be copied. */
function curl({ path, method, requestBody }) {
  const address = new URL(path.slice(1), client.url).href.replaceAll("%7B", "{").replaceAll("%7D", "}");
  const verb = method === "delete" ? " -X DELETE" : "";
  const types = Object.keys(requestBody?.content ?? {});
  const form = " -F file=@recording.mp3" + (path.startsWith("/v1") ? " -F model=whisper-1" : "");
  const sent = !types.length ? "" : types.includes("multipart/form-data") ? form : " --data-binary @recording.mp3";
  return `curl -s${verb} "${address}"${keyOption()}${sent}`;
}

// -- schemas --------------------------------------------------------------------------------------------------------

function resolve(what) {
  if (!what.$ref) return what;
  return what.$ref.split("/").slice(1).reduce((found, name) => found[name], spec);
}

/** One named value: its type, what it means, and what is in it. */
function value(name, given, description, depth, notes = []) {
  const schema = resolve(given ?? {});
  const row = document.createElement("li");
  if (name) row.append(element("code", "", name), " ");
  row.append(element("span", "type", [typeOf(schema), ...notes.filter(Boolean)].join(", ")));
  const said = description || schema.description;
  if (said) row.append(" ", prose("span", "about", said));
  if (depth < MAX_DEPTH && fieldsOf(schema).length) row.append(folded(schema, depth));
  return row;
}

function folded(schema, depth) {
  const box = document.createElement("details");
  box.append(element("summary", "", text("docs_fields")));
  box.addEventListener("toggle", () => {
    if (box.children.length > 1) return;
    box.append(list(fieldsOf(schema).map(([name, field]) => value(name, field, "", depth + 1))));
  });
  return box;
}

/** The properties of an object, of the items of an array, or of several schemas together. */
function fieldsOf(given) {
  const schema = resolve(given ?? {});
  const parts = [...(schema.allOf ?? []), ...(schema.oneOf ?? []), ...(schema.anyOf ?? []), ...(schema.items ? [schema.items] : [])];
  return [...Object.entries(schema.properties ?? {}), ...parts.flatMap(fieldsOf)];
}

function typeOf(given) {
  const schema = resolve(given ?? {});
  if (schema.enum) return schema.enum.length > 8 ? text("docs_several") : schema.enum.join(" | ");
  if ("const" in schema) return String(schema.const);
  if (schema.anyOf || schema.oneOf) return [...new Set((schema.anyOf ?? schema.oneOf).map(typeOf))].join(text("docs_or"));
  if (schema.allOf) return "object";
  const names = [schema.type ?? "any"].flat().map((type) => (type === "array" ? text("docs_array", { type: typeOf(schema.items) }) : type));
  const format = schema.format ? ` (${schema.format})` : "";
  const limits = [limit(schema), schema.default !== undefined && text("docs_default", { value: schema.default })].filter(Boolean);
  return [names.join(text("docs_or")) + format, ...limits].join(", ");
}

function limit({ minimum, maximum, maxLength }) {
  if (minimum !== undefined && maximum !== undefined) return text("docs_range", { minimum, maximum });
  if (minimum !== undefined) return text("docs_from", { minimum });
  return maxLength ? text("docs_length", { maximum: maxLength }) : "";
}

function list(rows) {
  const made = element("ul", "fields");
  made.append(...rows);
  return made;
}

/** A text in which `names` are code. */
function prose(name, className, content) {
  const made = element(name, className);
  made.append(...content.split(/`([^`]+)`/).map((part, index) => (index % 2 ? element("code", "", part) : part)));
  return made;
}

/** Open what the address names. */
function showTarget() {
  const target = document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) target.open = true;
  target?.scrollIntoView();
}

$("switch").onclick = switchLanguage;
document.addEventListener("language", () => (spec ? show() : fill()));
addEventListener("hashchange", showTarget);
translate();
fill();
guard(load);
