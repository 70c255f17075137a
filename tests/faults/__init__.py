"""The fault harness: the whole system as processes, clients with known transcripts, seeded faults, and an account.

    python -m tests.faults --seeds 1-50          two minutes each; `make faults`
    python -m tests.faults --seconds 7200 --between 60    two hours with a fault a minute; `make faults-soak`
    python -m tests.faults --seeds 7 --keep      the same faults again; logs and data stay

program.py    the server as it is started here: with audio that kills or hangs it, and a clock that can be stepped
proxy.py      between clients, gateways, Redis and PostgreSQL: delays, refuses, cuts in the middle of a frame
cluster.py    Redis, PostgreSQL and two machines of gateways and workers
clients.py    clients that resume and clients that do not; what each was told goes into the book
book.py       what was sent and what came back, of every session
catalogue.py  the faults
schedule.py   which fault comes when: a function of the seed
growth.py     memory of each part, and delays, by tenths of a run
account.py    what the book, PostgreSQL, Redis and the operating system say at the end
harness.py    one run
report.py     its page
recovery.py   how long clients wait after single faults, under light load
"""
