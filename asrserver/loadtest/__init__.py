"""`asrserver loadtest`: many clients at once, and a verifier of every word that comes back.

plan        what is to be done: everything a client's process must know
speech      the sentences that are said, and which session says which
verifier    what became of one session: right, or wrong in which ways
virtual_user  one connection and its sessions
stats       counts and times, which add up over connections and processes
processes   the processes with the callers, and what they tell
host        what the machine, the server's processes and the tester's own cost
dashboard   the dashboard
runner      one run, and the search for the capacity
sizing      what a server carries, for `asrserver bench`
private_server  a server for one measurement
report      what is left of it: Markdown, pictures, JSON
"""
