"""What must be atomic in Redis, as Lua. Every script may be sent again after a lost reply and then does nothing new."""

from __future__ import annotations

# KEYS session audio events asr_open asr_tasks · ARGV sid deadline nonce field value … → 1, or 0 if the id is taken
OPEN = """
if redis.call('EXISTS', KEYS[1]) == 1 then
  return redis.call('HGET', KEYS[1], 'nonce') == ARGV[3] and 1 or 0
end
redis.call('ZADD', KEYS[4], ARGV[2], ARGV[1])
redis.call('HSET', KEYS[1], 'nonce', unpack(ARGV, 3))
redis.call('XADD', KEYS[2], '0-1', 't', 'start')
redis.call('XADD', KEYS[3], '0-1', 't', 'start')
redis.call('XADD', KEYS[5], '*', 'sid', ARGV[1])
return 1
"""

# KEYS session audio asr_open · ARGV sid seen-gateway gateway status deadline → 1, or 0 if another gateway has it.
# The control entry's id follows the last chunk's, whatever that is. Then the stream takes no more: a chunk of a gateway
# that slept through the adoption of its session would be acknowledged and never heard.
END = """
local holder = redis.call('HGET', KEYS[1], 'gateway')
if holder ~= ARGV[2] and holder ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], 'gateway', ARGV[3])
if redis.call('HSETNX', KEYS[1], 'end', ARGV[4]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[2])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      local ms, n = string.match(info[i + 1], '(%d+)-(%d+)')
      redis.call('XADD', KEYS[2], 'NOMKSTREAM', ms .. '-' .. string.format('%d', n + 1), 't', 'end', 's', ARGV[4])
      redis.call('XSETID', KEYS[2], '18446744073709551615-0')
    end
  end
end
redis.call('ZADD', KEYS[3], ARGV[5], ARGV[1])
return 1
"""

# KEYS events · ARGV worker → the epoch of the new owner, or nil if the session is gone
FENCE = """
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
if #last == 0 then return nil end
local epoch = string.match(last[1][1], '(%d+)-') + 1
redis.call('XADD', KEYS[1], 'NOMKSTREAM', string.format('%d-0', epoch), 't', 'claim', 'worker', ARGV[1])
return epoch
"""

# KEYS events session audio asr_tasks · ARGV id seq data minid final task group → 1, or 0 if the owner is another.
# The gateway is read here, so that a session that changed its gateway is published to the new one.
EMIT = """
local added = redis.pcall('XADD', KEYS[1], 'NOMKSTREAM', ARGV[1], 'seq', ARGV[2], 'data', ARGV[3])
if not added then return 0 end
if type(added) == 'table' and added.err then
  if not string.find(added.err, 'equal or smaller') then return redis.error_reply(added.err) end
  local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
  if last[1][1] ~= ARGV[1] then return 0 end
end
local gateway = redis.call('HGET', KEYS[2], 'gateway')
if gateway then redis.call('PUBLISH', 'asr_results:' .. gateway, ARGV[3]) end
redis.call('XTRIM', KEYS[3], 'MINID', ARGV[4])
if ARGV[5] == '1' then
  redis.call('XACK', KEYS[4], ARGV[7], ARGV[6])
  redis.call('XDEL', KEYS[4], ARGV[6])
end
return 1
"""

# KEYS asr_tasks · ARGV group worker idle count → entries whose lease ran out, now this worker's. Not XAUTOCLAIM: that
# looks at ten entries for each it may return, so from the start it would see the same living ones for ever.
STALE = """
local ids = {}
for _, entry in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[3], '-', '+', ARGV[4])) do
  ids[#ids + 1] = entry[1]
end
if #ids == 0 then return {} end
return redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], unpack(ids))
"""

# KEYS asr_tasks · ARGV group worker id … → the ids that were still this worker's; only those are renewed.
# One script, because a worker that slept between the look and the XCLAIM would steal its entry back.
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

# KEYS asr_tasks · ARGV group worker id … → how many; no id means all of the worker's. The entries become idle for an
# hour, so that the next XAUTOCLAIM takes them whatever the lease.
RELEASE = """
local entries = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 100000, ARGV[2])
local wanted, released = {}, 0
for i = 3, #ARGV do wanted[ARGV[i]] = true end
for _, entry in ipairs(entries) do
  if #ARGV == 2 or wanted[entry[1]] then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, entry[1], 'IDLE', 3600000, 'JUSTID')
    released = released + 1
  end
end
return released
"""

# KEYS session · ARGV entry → strikes of the entry, counted in the session's hash
STRIKE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
return redis.call('HINCRBY', KEYS[1], 'strike:' .. ARGV[1], 1)
"""
