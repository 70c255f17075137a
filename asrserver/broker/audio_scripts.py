"""The Lua scripts that append to the audio of sessions."""

from __future__ import annotations

# Appends an entry that is no chunk, whose id follows that of the last chunk, whatever that is.
CONTROL = """
local function control(audio, ...)
  local info = redis.call('XINFO', 'STREAM', audio)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      local ms, n = string.match(info[i + 1], '(%d+)-(%d+)')
      redis.call('XADD', audio, 'NOMKSTREAM', ms .. '-' .. string.format('%d', n + 1), ...)
    end
  end
end
"""

# Why a chunk is not appended, as APPEND answers; nil: it is. `fields` are the session's gateway, last and end.
_REFUSAL = """
local function refusal(fields, index, before)
  if not fields[1] then return -2 end
  if fields[1] ~= ARGV[1] then return 0 end
  if (fields[2] or '') ~= before then return tonumber(index) <= tonumber(fields[2] or -1) and 1 or -1 end
  if fields[3] then return -2 end
end
"""

# Appends an entry of audio, as APPEND describes it.
_APPEND = (
    _REFUSAL
    + """
local function append(session, audio, index, before, data, received, chunks, parts)
  local fields = redis.pcall('HMGET', session, 'gateway', 'last', 'end', 'part')
  if fields.err then return fields end
  local refused = refusal(fields, index, before)
  if refused then return refused end
  local id = string.format('%.0f-0', index + 1)
  local added
  if parts then
    if fields[4] ~= received .. ' ' .. string.format('%d', parts - 1) then return -1 end
    added = redis.pcall('XADD', audio, 'NOMKSTREAM', id, 'd', data, 'at', received, 'p', parts)
  elseif chunks == '1' then
    added = redis.pcall('XADD', audio, 'NOMKSTREAM', id, 'd', data, 'at', received)
  else
    added = redis.pcall('XADD', audio, 'NOMKSTREAM', id, 'd', data, 'at', received, 'n', chunks)
  end
  if not added then return -2 end
  if type(added) == 'table' then
    if string.find(added.err, 'READONLY') then error(added.err) end -- of all entries: it has become a replica
    return added
  end
  if before == '' then
    redis.call('HSET', session, 'last', index, 'first', index)
  else
    redis.call('HSET', session, 'last', index)
  end
  if parts then redis.call('HDEL', session, 'part') end
  return 1
end
"""
)

# Appends entries of any number of sessions. KEYS session audio … · ARGV gateway, then index before data received chunks
# … → for each entry: 1, the stream has it (perhaps since an earlier try whose reply was lost); 0, another gateway holds
# the session; -1, the chunk before it is missing; -2, the session is gone; or an error. `index` is the index of the
# last chunk of the entry, `before` that of the chunk before the first one, empty if there is none: after a chunk that
# could not be written, none of the next may be.
APPEND = (
    _APPEND
    + """
local answers, at = {}, 2
for i = 1, #KEYS, 2 do
  answers[#answers + 1] = append(KEYS[i], KEYS[i + 1], unpack(ARGV, at, at + 4))
  at = at + 5
end
return answers
"""
)

# Appends a part of a large chunk that is not the last one. KEYS session audio · ARGV gateway index before received part
# data → as APPEND. The hash says which part of which attempt came last (`received` tells attempts apart): one that is
# sent again after a lost reply changes nothing, and part 0 begins anew. Ids are those of control entries: they follow
# the chunk before, and the chunk's own entry follows them.
APPEND_PART = (
    CONTROL
    + _REFUSAL
    + """
local fields = redis.call('HMGET', KEYS[1], 'gateway', 'last', 'end', 'part')
local refused = refusal(fields, ARGV[2], ARGV[3])
if refused then return refused end
local attempt, part = string.match(fields[4] or '', '(%S+) (%d+)')
if attempt == ARGV[4] then
  if tonumber(ARGV[5]) <= tonumber(part) then return 1 end
  if tonumber(ARGV[5]) ~= part + 1 then return -1 end
elseif ARGV[5] ~= '0' then
  return -1
end
control(KEYS[2], 't', 'part', 'p', ARGV[5], 'at', ARGV[4], 'd', ARGV[6])
redis.call('HSET', KEYS[1], 'part', ARGV[4] .. ' ' .. ARGV[5])
return 1
"""
)

# Appends the last part, which is the entry of the chunk: KEYS and ARGV as APPEND_PART; `part` is the number of parts
# before it, all of which must be there.
APPEND_LAST_PART = (
    _APPEND
    + """
return append(KEYS[1], KEYS[2], ARGV[2], ARGV[3], ARGV[6], ARGV[4], '1', ARGV[5])
"""
)
