"""The Lua scripts by which the worker that owns a session appends and publishes its events and writes checkpoints.

Redis refuses those of an earlier owner. Each script may be sent again after a lost reply, and then changes nothing.
Above each script are its KEYS, its ARGV and its reply.
"""

from __future__ import annotations

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
APPEND_EVENT = """
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
CHECKPOINT = """
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

# KEYS session · ARGV entry → the strikes of the entry so far, or 0 if the session is gone, or another program's
STRIKE = """
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return 0 end
local strikes = redis.pcall('HINCRBY', KEYS[1], 'strike:' .. ARGV[1], 1)
return type(strikes) == 'number' and strikes or 0
"""
