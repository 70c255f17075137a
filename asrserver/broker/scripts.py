"""The Lua scripts: commands that must be atomic. Each may be sent again after a lost reply, and then changes nothing.

Above each stand its KEYS, its ARGV and its reply. Those that append audio are in audio_scripts.py.
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

# KEYS session asr_open · ARGV sid gateway deadline owner detached → the fields of the session, which this gateway holds
# now; or nil if the owner has no such session, or with `detached` 1 if a client is connected to it. From here on APPEND
# refuses the chunks of the gateway that held it before.
RESUME = (
    _MOVE
    + """
local fields = redis.call('HMGET', KEYS[1], 'gateway', 'owner', 'detached')
if not fields[1] or (fields[2] or '') ~= ARGV[4] then return nil end
if ARGV[5] == '1' and not fields[3] then return nil end
redis.call('HDEL', KEYS[1], 'detached')
move(ARGV[1], fields[1], ARGV[2], false)
redis.call('ZADD', KEYS[2], 'XX', ARGV[3], ARGV[1])
return redis.call('HGETALL', KEYS[1])
"""
)

# KEYS asr_open session … · ARGV gateway, then sid deadline … → sid state … of the sessions that this gateway does not
# hold (any more): moved, ended (by another gateway) or gone. The others get their new deadlines.
REFRESH = """
local lost = {}
for i = 2, #KEYS do
  local sid, deadline = ARGV[i * 2 - 2], ARGV[i * 2 - 1]
  local fields = redis.call('HMGET', KEYS[i], 'gateway', 'end')
  if fields[1] == ARGV[1] then
    redis.call('ZADD', KEYS[1], 'XX', deadline, sid)
  else
    lost[#lost + 1] = sid
    lost[#lost + 1] = fields[1] and (fields[2] and 'ended' or 'moved') or 'gone'
  end
end
return lost
"""

# KEYS session audio · ARGV sid gateway number → 1, or 0 if the session takes no more audio here. Published to the
# workers as an end is: see END. The number tells a command that is sent again.
FLUSH = (
    CONTROL
    + """
local fields = redis.call('HMGET', KEYS[1], 'gateway', 'end', 'flushes')
if fields[1] ~= ARGV[2] or fields[2] then return 0 end
if tonumber(fields[3] or 0) < tonumber(ARGV[3]) then
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

# KEYS session audio asr_open · ARGV sid seen-gateway gateway status deadline overdue last → 1, or 0 if another gateway
# holds the session. With `overdue` (a time), also 0 if the deadline was moved past it: a client may just have resumed
# it. With `last` (an index), -1 if the session's last chunk is another: what its client sent is not all here. The
# end is published to the workers: one with hundreds of streams reads each of them only every second or two. XSETID
# closes the stream: a chunk of a gateway that slept while its session was adopted would be acknowledged and never read.
END = (
    _MOVE
    + CONTROL
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
if redis.call('HSETNX', KEYS[1], 'end', ARGV[4]) == 1 then
  control(KEYS[2], 't', 'end', 's', ARGV[4])
  redis.call('XSETID', KEYS[2], '18446744073709551615-0')
  redis.call('PUBLISH', 'asr_ended', cjson.encode({session_id = ARGV[1]}))
end
if holder ~= ARGV[3] then move(ARGV[1], holder, ARGV[3], true) end
redis.call('ZADD', KEYS[3], 'XX', ARGV[5], ARGV[1])
return 1
"""
)

# KEYS events · ARGV worker → the epoch of the worker, which owns the session now; or nil if the session is gone
FENCE = """
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
if #last == 0 then return nil end
local epoch = string.match(last[1][1], '(%d+)-') + 1
redis.call('XADD', KEYS[1], 'NOMKSTREAM', string.format('%d-0', epoch), 't', 'claim', 'worker', ARGV[1])
return epoch
"""

# KEYS events session audio tasks quota said asr_finished · ARGV id seq data minid final task group seconds texts field
# value … → 1, or 0 if another worker owns the session. `final` is the session's id where the event is its last, else
# empty. The fields and the texts of the segments are what a next owner needs. Texts are kept and seconds charged only
# where the event is new, not where it is sent again after a lost reply. The gateway is read here, so that the event of
# a session that moved is published to its new gateway.
EMIT = """
local added = redis.pcall('XADD', KEYS[1], 'NOMKSTREAM', ARGV[1], 'seq', ARGV[2], 'data', ARGV[3])
if not added then return 0 end
if type(added) == 'table' and added.err then
  if not string.find(added.err, 'equal or smaller') then return redis.error_reply(added.err) end
  local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
  if last[1][1] ~= ARGV[1] then return 0 end
else
  if ARGV[9] ~= '' then redis.call('RPUSH', KEYS[6], ARGV[9]) end
  if tonumber(ARGV[8]) > 0 then
    redis.call('INCRBYFLOAT', KEYS[5], ARGV[8])
    redis.call('EXPIRE', KEYS[5], 300)
  end
  if ARGV[5] ~= '' then
    local now = redis.call('TIME')
    redis.call('ZADD', KEYS[7], now[1] * 1000 + math.floor(now[2] / 1000), ARGV[5])
  end
end
local gateway = redis.call('HGET', KEYS[2], 'gateway')
if gateway then redis.call('PUBLISH', 'asr_results:' .. gateway, ARGV[3]) end
if #ARGV > 9 then redis.call('HSET', KEYS[2], unpack(ARGV, 10)) end
redis.call('XTRIM', KEYS[3], 'MINID', ARGV[4])
if ARGV[5] ~= '' then
  redis.call('XACK', KEYS[4], ARGV[7], ARGV[6])
  redis.call('XDEL', KEYS[4], ARGV[6])
end
return 1
"""

# KEYS events session audio quota · ARGV epoch minid total counted field value … → 1, or 0 if another worker owns the
# session. For audio without a result: otherwise minutes of silence would stay in Redis, and cost their API key nothing
# until the end. A `total` of 0 is not charged. The hash keeps what was charged without an event that says so.
COVER = """
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
if #last == 0 or string.match(last[1][1], '(%d+)-') ~= ARGV[1] then return 0 end
local charge = tonumber(ARGV[3]) - math.max(tonumber(ARGV[4]), tonumber(redis.call('HGET', KEYS[2], 'charged') or 0))
if charge > 0 then
  redis.call('INCRBYFLOAT', KEYS[4], string.format('%.3f', charge))
  redis.call('EXPIRE', KEYS[4], 300)
  redis.call('HSET', KEYS[2], 'charged', ARGV[3])
end
redis.call('HSET', KEYS[2], unpack(ARGV, 5))
redis.call('XTRIM', KEYS[3], 'MINID', ARGV[2])
return 1
"""

# Publishes an event that is not stored. KEYS events session · ARGV epoch data → 1, or 0 if another worker owns the
# session: an earlier owner must not publish partial results either.
PUBLISH = """
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
if #last == 0 or string.match(last[1][1], '(%d+)-') ~= ARGV[1] then return 0 end
local gateway = redis.call('HGET', KEYS[2], 'gateway')
if gateway then redis.call('PUBLISH', 'asr_results:' .. gateway, ARGV[2]) end
return 1
"""

# A worker offers a model: the stream of its tasks exists from now on, with its group. KEYS asr_offered tasks ·
# ARGV model now (epoch seconds) group
OFFER = """
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
local made = redis.pcall('XGROUP', 'CREATE', KEYS[2], ARGV[3], '0', 'MKSTREAM')
if made.err and not string.find(made.err, 'BUSYGROUP') then return redis.error_reply(made.err) end
return 1
"""

# Sessions that name a model which nobody has offered since a time must not wait for ever: any worker takes them, to say
# so. KEYS asr_offered · ARGV group worker idle count time → stream entries …, which this worker holds now. Streams
# without tasks are deleted.
ABANDONED = """
local found = {}
for _, model in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[5])) do
  local stream = 'asr_tasks:' .. model
  if redis.call('XLEN', stream) == 0 then
    redis.call('DEL', stream)
    redis.call('ZREM', KEYS[1], model)
  else
    redis.pcall('XGROUP', 'CREATE', stream, ARGV[1], '0')
    local ids = {}
    for _, entry in ipairs(redis.call('XPENDING', stream, ARGV[1], 'IDLE', ARGV[3], '-', '+', ARGV[4])) do
      ids[#ids + 1] = entry[1]
    end
    if #ids > 0 then
      found[#found + 1] = stream
      found[#found + 1] = redis.call('XCLAIM', stream, ARGV[1], ARGV[2], ARGV[3], unpack(ids))
    end
    local new = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[4], 'STREAMS', stream, '>')
    if new then
      found[#found + 1] = stream
      found[#found + 1] = new[1][2]
    end
  end
end
return found
"""

# Whether a consumer of a stream of tasks is a line of sessions that wait for a worker, see CLAIM.
_IN_LINE = """
local function in_line(consumer) return string.sub(consumer, 1, 8) == 'waiting:' end
"""

# KEYS tasks · ARGV group worker idle count key … → entries that this worker holds now: in turn of each API key whose
# sessions stand in line, then those whose lease expired (not with an idle time of -1), then new ones. With keys, only
# sessions of others: those of these keys and all that are expired or new are put in line, which is a consumer of the
# group for each key, `waiting:<key>`. So a worker finds the sessions of one key behind any number of another's.
# XAUTOCLAIM does not do: it looks at ten entries for each that it may return, so it would see the same living ones at
# each call.
CLAIM = (
    _IN_LINE
    + """
local stream, group, worker, idle, count = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local passed = {}
for i = 5, #ARGV do passed[ARGV[i]] = true end

local function expired(most)
  local ids = {}
  if idle >= 0 then
    for _, entry in ipairs(redis.call('XPENDING', stream, group, 'IDLE', idle, '-', '+', most)) do
      if not in_line(entry[2]) then ids[#ids + 1] = entry[1] end
    end
  end
  return ids
end

local function put_in_line(entries)
  local lines = {}
  for _, entry in ipairs(entries) do
    local key, fields = '', entry[2] or {}
    for i = 1, #fields, 2 do if fields[i] == 'key' then key = fields[i + 1] end end
    lines[key] = lines[key] or {}
    table.insert(lines[key], entry[1])
  end
  for key, ids in pairs(lines) do
    redis.call('XCLAIM', stream, group, 'waiting:' .. key, 0, unpack(ids))
  end
end

if #ARGV > 4 then
  local ids = expired(500)
  if #ids > 0 then put_in_line(redis.call('XCLAIM', stream, group, 'waiting:', 0, unpack(ids))) end
  local new = redis.call('XREADGROUP', 'GROUP', group, 'waiting:', 'COUNT', 500, 'STREAMS', stream, '>')
  if new then put_in_line(new[1][2]) end
end

local lines, chosen = {}, {}
for _, consumer in ipairs(redis.call('XPENDING', stream, group)[4] or {}) do
  if in_line(consumer[1]) and not passed[string.sub(consumer[1], 9)] then
    lines[#lines + 1] = redis.call('XPENDING', stream, group, '-', '+', count, consumer[1])
  end
end
for turn = 1, count do
  for _, line in ipairs(lines) do
    if line[turn] and #chosen < count then chosen[#chosen + 1] = line[turn][1] end
  end
end
if #ARGV == 4 and #chosen < count then
  for _, id in ipairs(expired(count - #chosen)) do chosen[#chosen + 1] = id end
end
local found = {}
if #chosen > 0 then found = redis.call('XCLAIM', stream, group, worker, 0, unpack(chosen)) end
for _, line in ipairs(lines) do
  local consumer = line[1][2]
  if #redis.call('XPENDING', stream, group, '-', '+', 1, consumer) == 0 then
    redis.call('XGROUP', 'DELCONSUMER', stream, group, consumer)
  end
end
if #ARGV == 4 and #found < count then
  local new = redis.call('XREADGROUP', 'GROUP', group, worker, 'COUNT', count - #found, 'STREAMS', stream, '>')
  for _, entry in ipairs(new and new[1][2] or {}) do found[#found + 1] = entry end
end
return found
"""
)

# KEYS tasks · ARGV group worker id … → the ids that this worker still holds; only those are renewed. It is one
# script: a worker that slept between XPENDING and XCLAIM would steal the entry back from its new owner.
RENEW = """
local mine = {}
for i = 3, #ARGV do
  if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2]) == 1 then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
    mine[#mine + 1] = ARGV[i]
  end
end
return mine
"""

# KEYS tasks · ARGV group worker id … → the number of released entries; without ids, all of the worker's. Their idle
# time becomes an hour, so that the next CLAIM takes them whatever its lease time is. Of a worker that is gone, the
# others are told: they look at once.
RELEASE = """
local entries = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', 100000, ARGV[2])
if entries.err then return 0 end
local wanted, released = {}, 0
for i = 3, #ARGV do wanted[ARGV[i]] = true end
for _, entry in ipairs(entries) do
  if #ARGV == 2 or wanted[entry[1]] then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, entry[1], 'IDLE', 3600000, 'JUSTID')
    released = released + 1
  end
end
if #ARGV == 2 and released > 0 then
  redis.call('PUBLISH', 'asr_ended', cjson.encode({session_id = '', released = true}))
end
return released
"""

# KEYS tasks · ARGV group worker id key … → the number of entries of this worker that stand in line now for another one,
# of which the others are told
HAND_OVER = """
local handed = 0
for i = 3, #ARGV, 2 do
  if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2]) == 1 then
    redis.call('XCLAIM', KEYS[1], ARGV[1], 'waiting:' .. ARGV[i + 1], 0, ARGV[i], 'JUSTID')
    handed = handed + 1
  end
end
if handed > 0 then redis.call('PUBLISH', 'asr_ended', cjson.encode({session_id = '', released = true})) end
return handed
"""

# KEYS tasks · ARGV group id … → those of the entries that stand in line
IN_LINE = (
    _IN_LINE
    + """
local found = {}
for i = 2, #ARGV do
  local entry = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)[1]
  if entry and in_line(entry[2]) then found[#found + 1] = ARGV[i] end
end
return found
"""
)

# KEYS session · ARGV entry → the strikes of the entry so far, or 0 if the session is gone
STRIKE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
return redis.call('HINCRBY', KEYS[1], 'strike:' .. ARGV[1], 1)
"""

# KEYS session audio events said asr_open asr_finished · ARGV sid ttl (ms) → 1, or 0 if the session was closed before.
# All keys of a stored session get one TTL; those of a deleted session are deleted.
CLOSE = """
local deleted = redis.call('HEXISTS', KEYS[1], 'deleted') == 1
for i = 1, 4 do
  if deleted then redis.call('UNLINK', KEYS[i]) else redis.call('PEXPIRE', KEYS[i], ARGV[2]) end
end
redis.call('ZREM', KEYS[6], ARGV[1])
return redis.call('ZREM', KEYS[5], ARGV[1])
"""

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
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if ARGV[2] ~= '' and redis.call('HGET', KEYS[1], 'owner') ~= ARGV[2] then return 0 end
if redis.call('ZSCORE', KEYS[5], ARGV[1]) then
  redis.call('HSET', KEYS[1], 'deleted', '1')
else
  redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
end
return 1
"""

# KEYS tasks · ARGV group → 1 if the group had to be made. From id 0 and not from $: sessions that were started before
# the first worker must be waiting, not lost. It looks first: what is there already needs no memory, which may be full.
MAKE_GROUP = """
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
for _, group in ipairs(groups.err and {} or groups) do
  if group[2] == ARGV[1] then return 0 end
end
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
if not made.err then return 1 end
if string.find(made.err, 'BUSYGROUP') then return 0 end
return redis.error_reply(made.err)
"""

# KEYS tasks · ARGV group → (entries, entries that a worker holds); the stream may have been deleted just now
COUNT = (
    _IN_LINE
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return {0, 0} end
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1])
local held = 0
for _, consumer in ipairs(not pending.err and pending[4] or {}) do
  if not in_line(consumer[1]) then held = held + consumer[2] end
end
return {redis.call('XLEN', KEYS[1]), held}
"""
)

# KEYS tasks · ARGV group → milliseconds for which an unclaimed entry has waited at most, by the clock of Redis. Those
# in line have waited since they came there: one whose worker died or is drained is as old as its session.
OLDEST = (
    _IN_LINE
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local time, oldest = redis.call('TIME'), 0
for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local named = {}
  for i = 1, #info, 2 do named[info[i]] = info[i + 1] end
  if named['name'] == ARGV[1] then
    local first = redis.call('XRANGE', KEYS[1], '(' .. named['last-delivered-id'], '+', 'COUNT', 1)
    if #first > 0 then oldest = time[1] * 1000 + math.floor(time[2] / 1000) - string.match(first[1][1], '(%d+)-') end
    for _, consumer in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1])[4] or {}) do
      if in_line(consumer[1]) then
        for _, entry in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 100, consumer[1])) do
          oldest = math.max(oldest, entry[3])
        end
      end
    end
  end
end
return oldest
"""
)
