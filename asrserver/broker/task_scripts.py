"""The Lua scripts of the tasks: how sessions wait for workers, are claimed, leased, released and handed over.

Each may be sent again after a lost reply, and then changes nothing; above each stand its KEYS, its ARGV and its reply.
"""

from __future__ import annotations

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
