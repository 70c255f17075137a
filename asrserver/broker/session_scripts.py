"""The Lua scripts by which gateways open, move, end and delete sessions.

Each may be sent again after a lost reply, and then changes nothing; above each stand its KEYS, its ARGV and its reply.
Those that append audio are in audio_scripts.py.
"""

from __future__ import annotations

from asrserver.broker.audio_scripts import CONTROL

# KEYS session audio events asr_open tasks asr_offered · ARGV sid deadline nonce model field value … → 1; 0 if the id is
# taken; or -1 if nobody has offered the model (empty: none is named) lately, so that there is no stream of its tasks
OPEN = """
if redis.call('EXISTS', KEYS[1]) == 1 then
  return redis.call('HGET', KEYS[1], 'nonce') == ARGV[3] and 1 or 0
end
if ARGV[4] ~= '' and not redis.call('ZSCORE', KEYS[6], ARGV[4]) then return -1 end
redis.call('ZADD', KEYS[4], ARGV[2], ARGV[1])
redis.call('HSET', KEYS[1], 'nonce', ARGV[3], unpack(ARGV, 5))
redis.call('XADD', KEYS[2], '0-1', 't', 'start')
redis.call('XADD', KEYS[3], '0-1', 't', 'start')
redis.call('XADD', KEYS[5], '*', 'sid', ARGV[1], 'key', redis.call('HGET', KEYS[1], 'owner') or '')
return 1
"""

# Tells a gateway that a session it held belongs to another one now: a client resumed the session there, or it was
# `ended` there because no client had resumed it. `move` counts the moves, so that an old message can be recognised.
_MOVE = """
local function move(sid, from, to, ended)
  redis.call('HSET', KEYS[1], 'gateway', to)
  local number = redis.call('HINCRBY', KEYS[1], 'moves', 1)
  if from ~= to then
    local news = {type = 'moved', session_id = sid, move = number, ended = ended}
    redis.call('PUBLISH', 'asr_results:' .. from, cjson.encode(news))
  end
end
"""

# KEYS session · ARGV gateway. Notes that no client is connected to a session that this gateway holds.
DETACH = """
if redis.call('HGET', KEYS[1], 'gateway') == ARGV[1] then redis.call('HSET', KEYS[1], 'detached', 1) end
"""

# KEYS session asr_open events · ARGV sid gateway deadline owner detached last_seq → the fields of the session, which
# this gateway holds now; or nil if the owner has no such session, or with `detached` 1 if a client is connected to it;
# or -1 if `last_seq` is past its newest event, which stands before the last claims of workers. From here on APPEND
# refuses the chunks of the gateway that held it before.
RESUME = (
    _MOVE
    + """
local function newest(events)
  local before = '+'
  while true do
    local entries = redis.call('XREVRANGE', events, before, '-', 'COUNT', 10)
    for _, entry in ipairs(entries) do
      for i = 1, #entry[2], 2 do
        if entry[2][i] == 'seq' and tonumber(entry[2][i + 1]) then return tonumber(entry[2][i + 1]) end
      end
    end
    if #entries == 0 then return 0 end
    before = '(' .. entries[#entries][1]
  end
end

local fields = redis.call('HMGET', KEYS[1], 'gateway', 'owner', 'detached')
if not fields[1] or (fields[2] or '') ~= ARGV[4] then return nil end
if ARGV[5] == '1' and not fields[3] then return nil end
if tonumber(ARGV[6]) > 0 and tonumber(ARGV[6]) > newest(KEYS[3]) then return -1 end
redis.call('HDEL', KEYS[1], 'detached')
move(ARGV[1], fields[1], ARGV[2], false)
redis.call('ZADD', KEYS[2], 'XX', ARGV[3], ARGV[1])
return redis.call('HGETALL', KEYS[1])
"""
)

# KEYS asr_open session … · ARGV gateway, then sid deadline missing … → sid state … of the sessions that this gateway
# does not hold (any more): moved, ended (by another gateway) or gone, as is one whose key is another program's. The
# others get their new deadlines, and the field `missing`, which most do not have.
REFRESH = """
local lost = {}
for i = 2, #KEYS do
  local sid, deadline, missing = unpack(ARGV, i * 3 - 4, i * 3 - 2)
  local fields = redis.pcall('HMGET', KEYS[i], 'gateway', 'end', 'missing')
  if fields[1] == ARGV[1] then
    redis.call('ZADD', KEYS[1], 'XX', deadline, sid)
    if missing ~= (fields[3] or '') then
      if missing == '' then redis.call('HDEL', KEYS[i], 'missing')
      else redis.call('HSET', KEYS[i], 'missing', missing) end
    end
  else
    lost[#lost + 1] = sid
    lost[#lost + 1] = fields[1] and (fields[2] and 'ended' or 'moved') or 'gone'
  end
end
return lost
"""

# KEYS session audio · ARGV sid gateway number last → 1, or 0 if the session takes no more audio here, or its last chunk
# has another index than `last` (empty: there is none): one before the flush could not be written. Published to the
# workers as an end is: see END. The number tells a command that is sent again.
FLUSH = (
    CONTROL
    + """
local fields = redis.call('HMGET', KEYS[1], 'gateway', 'end', 'flushes', 'last')
if fields[1] ~= ARGV[2] or fields[2] then return 0 end
if tonumber(fields[3] or 0) < tonumber(ARGV[3]) then
  if (fields[4] or '') ~= ARGV[4] then return 0 end
  control(KEYS[2], 't', 'flush', 'f', ARGV[3])
  redis.call('HSET', KEYS[1], 'flushes', ARGV[3])
  redis.call('PUBLISH', 'asr_ended', cjson.encode({session_id = ARGV[1], flush = true}))
end
return 1
"""
)

# KEYS session audio · ARGV gateway options → 1, or 0 if the session takes no more audio here. The next owner has them
# from the session. Sent again, the command changes nothing.
CHANGE = (
    CONTROL
    + """
local fields = redis.call('HMGET', KEYS[1], 'gateway', 'end')
if fields[1] ~= ARGV[1] or fields[2] then return 0 end
control(KEYS[2], 't', 'options', 'o', ARGV[2])
redis.call('HSET', KEYS[1], 'options', ARGV[2])
return 1
"""
)

# Ends a session's audio. The end is published to the workers: one with hundreds of streams reads each of them only
# every second or two. XSETID closes the stream: a chunk of a gateway that slept while its session was adopted would be
# acknowledged and never read.
_CLOSE_AUDIO = """
local function close(sid, audio, status)
  control(audio, 't', 'end', 's', status)
  redis.call('XSETID', audio, '18446744073709551615-0')
  redis.call('PUBLISH', 'asr_ended', cjson.encode({session_id = sid}))
end
"""

# KEYS session audio asr_open · ARGV sid seen-gateway gateway status deadline overdue last → 1, or 0 if another gateway
# holds the session. With `overdue` (a time), also 0 if the deadline was moved past it: a client may just have resumed
# it. With `last` (an index), -1 if the session's last chunk is another: what its client sent is not all here.
END = (
    _MOVE
    + CONTROL
    + _CLOSE_AUDIO
    + """
local holder = redis.call('HGET', KEYS[1], 'gateway')
local ended = redis.call('HEXISTS', KEYS[1], 'end') == 1
if not (holder == ARGV[3] and ended) then
  if holder ~= ARGV[2] and holder ~= ARGV[3] then return 0 end
  if ARGV[6] ~= '' then
    local deadline = redis.call('ZSCORE', KEYS[3], ARGV[1])
    if not deadline or tonumber(deadline) > tonumber(ARGV[6]) then return 0 end
  end
end
if not ended and ARGV[7] ~= '' and (redis.call('HGET', KEYS[1], 'last') or '') ~= ARGV[7] then return -1 end
if redis.call('HSETNX', KEYS[1], 'end', ARGV[4]) == 1 then close(ARGV[1], KEYS[2], ARGV[4]) end
if holder ~= ARGV[3] then move(ARGV[1], holder, ARGV[3], true) end
redis.call('ZADD', KEYS[3], 'XX', ARGV[5], ARGV[1])
return 1
"""
)

# KEYS session audio events said asr_open asr_finished · ARGV sid ttl (ms) → 1, or 0 if the session was closed before.
# All keys of a stored session get one TTL; those of a deleted session are deleted.
CLOSE = """
local deleted = redis.pcall('HEXISTS', KEYS[1], 'deleted') == 1
for i = 1, 4 do
  if deleted then redis.call('UNLINK', KEYS[i]) else redis.call('PEXPIRE', KEYS[i], ARGV[2]) end
end
redis.call('ZREM', KEYS[6], ARGV[1])
return redis.call('ZREM', KEYS[5], ARGV[1])
"""

# KEYS and ARGV as CLOSE → 1, or 0 if the session was closed or given up before. No gateway holds it any more, which the
# one that did learns from REFRESH; a worker that has it finds its end, if it can; and all its keys get the TTL.
GIVE_UP = (
    CONTROL
    + _CLOSE_AUDIO
    + """
redis.pcall('HDEL', KEYS[1], 'gateway')
if redis.call('TYPE', KEYS[2]).ok == 'stream' and redis.pcall('HSETNX', KEYS[1], 'end', 'interrupted') == 1 then
  close(ARGV[1], KEYS[2], 'interrupted')
end
for i = 1, 4 do redis.call('PEXPIRE', KEYS[i], ARGV[2]) end
redis.call('ZREM', KEYS[6], ARGV[1])
return redis.call('ZREM', KEYS[5], ARGV[1])
"""
)

# KEYS asr_finished asr_open · ARGV count sid … → those of the sessions (without any: of the newest) whose final event
# is not stored. One that is not open was stored by a gateway of an earlier release, which knows no asr_finished.
UNSTORED = """
local found = {unpack(ARGV, 2)}
if #found == 0 then found = redis.call('ZREVRANGE', KEYS[1], 0, ARGV[1] - 1) end
local unstored = {}
for _, sid in ipairs(found) do
  if redis.call('ZSCORE', KEYS[2], sid) then
    if redis.call('ZSCORE', KEYS[1], sid) then unstored[#unstored + 1] = sid end
  else
    redis.call('ZREM', KEYS[1], sid)
  end
end
return unstored
"""

# KEYS session audio events said asr_open · ARGV sid owner → 1, or 0 if there is no such session (of that owner, unless
# it is empty). An open session is only marked, because its worker and its client go on with it; CLOSE deletes it.
DELETE = """
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return 0 end
if ARGV[2] ~= '' and redis.call('HGET', KEYS[1], 'owner') ~= ARGV[2] then return 0 end
if redis.call('ZSCORE', KEYS[5], ARGV[1]) then
  redis.call('HSET', KEYS[1], 'deleted', '1')
else
  redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
end
return 1
"""
