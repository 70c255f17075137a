"""`asrserver loadtest`: many clients at once, and a judgement of every word that comes back.

command     the options
plan        what is to be done: everything a client's process must know
speech      the sentences that are said, and which session says which
judge       what became of one session: right, or wrong in which ways
caller      one connection and its sessions
tally       counts and times, which add up over connections and processes
crew        the processes with the callers, and what they tell
machine     what the machine, the server's processes and the tester's own cost
screen      the dashboard
runner      one run, and the search for the capacity
report      what is left of it: Markdown, pictures, JSON
"""
