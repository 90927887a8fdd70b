"""The Lua scripts of the store. Each is one atomic write that may be sent twice.

A script answers a list whose first element is a code (`ok`, `missing`, `streaming`, `conflict`, `stale`).
Records arrive as finished JSON, because cjson cannot tell an empty list from an empty object; where Redis knows
a field that the caller does not, the script appends it to the JSON text.
"""

from __future__ import annotations

INTERACTION_OPEN = """
-- KEYS record facts interactions conversation; ARGV record id created_at status policy_version stored
if redis.call('EXISTS', KEYS[1]) == 1 then return {'ok'} end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[2], 'status', ARGV[4], 'policy_version', ARGV[5], 'stored', ARGV[6])
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[2])
if KEYS[4] then redis.call('ZADD', KEYS[4], ARGV[3], ARGV[2]) end
return {'ok'}
"""

INTERACTION_COMPLETE = """
-- KEYS record facts; ARGV record status policy_version stored
if redis.call('EXISTS', KEYS[1]) == 0 then return {'missing'} end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[2], 'status', ARGV[2], 'policy_version', ARGV[3], 'stored', ARGV[4])
return {'ok'}
"""

INTERACTION_CLOSE = """
-- KEYS record facts; ARGV record status policy_version stored. What ended meanwhile stays as it ended.
if redis.call('HGET', KEYS[2], 'status') ~= 'streaming' then return {'ok'} end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[2], 'status', ARGV[2], 'policy_version', ARGV[3], 'stored', ARGV[4])
return {'ok'}
"""

APPEND = """
local function lookup(key)
  local current = redis.call('HGET', key, ARGV[1])
  if not current then return nil, nil end
  return current, cjson.decode(current)
end

local function says_the_same(a, b)
  return a.value == b.value and a.comment == b.comment
    and cjson.encode(a.reasons) == cjson.encode(b.reasons)
end

local function extend(event, previous, version, trains)
  local supersedes = previous and cjson.encode(previous.event_id) or 'null'
  return string.sub(event, 1, -2) .. ',"supersedes":' .. supersedes
    .. ',"policy_version":' .. version .. ',"trains":' .. tostring(trains) .. '}'
end

-- Appends to the log, and makes the event current.
local function note(stream, current, event)
  redis.call('XADD', stream, '*', 'event', event)
  redis.call('HSET', current, ARGV[1], event)
end

-- The same of a verdict, which is also kept among the unread judgements.
local function append(stream, current, unread, event, trains)
  note(stream, current, event)
  if trains then
    redis.call('HSET', unread, ARGV[1], ARGV[3])
  else
    redis.call('HDEL', unread, ARGV[1])
  end
end

local function remember(key, first, changed, event)
  redis.call('HSET', key, 'first', first, 'changed', changed, 'event', event)
  redis.call('EXPIRE', key, 86400)
  return {'ok', first, changed, event}
end

local function remembered(key)
  local reply = redis.call('HMGET', key, 'first', 'changed', 'event')
  return reply[3] and {'ok', tonumber(reply[1]), tonumber(reply[2]), reply[3]} or nil
end

-- What must be known of the answer that is judged, or else the refusal.
local function answered(key)
  local facts = redis.call('HMGET', key, 'status', 'policy_version', 'stored')
  if not facts[1] then return nil, {'missing'} end
  if facts[1] == 'streaming' then return nil, {'streaming'} end
  return facts, nil
end

local function is_judgement(record)
  return record ~= nil and record.value ~= cjson.null
end
"""

RATE = (
    APPEND
    + """
-- KEYS dedupe facts stream current unread approval; ARGV judgement_key event event_id
local again = remembered(KEYS[1])
if again then return again end
local facts, refusal = answered(KEYS[2])
if refusal then return refusal end
local current, previous = lookup(KEYS[4])
local event = cjson.decode(ARGV[2])
if is_judgement(previous) and says_the_same(previous, event) then
  return remember(KEYS[1], 0, 0, current)
end
local version = facts[2]
local trains = facts[1] == 'done' and facts[3] == '1'
local full = extend(ARGV[2], previous, version, trains)
append(KEYS[3], KEYS[4], KEYS[5], full, trains)
if version ~= '0' then
  if is_judgement(previous) then
    redis.call('HINCRBY', KEYS[6], version .. ':' .. previous.value, -1)
  end
  redis.call('HINCRBY', KEYS[6], version .. ':' .. event.value, 1)
end
return remember(KEYS[1], is_judgement(previous) and 0 or 1, 1, full)
"""
)

WITHDRAW = (
    APPEND
    + """
-- KEYS dedupe stream current unread approval; ARGV judgement_key event event_id
local again = remembered(KEYS[1])
if again then return again end
local current, previous = lookup(KEYS[3])
if not is_judgement(previous) then return {'missing'} end
local full = extend(ARGV[2], previous, string.format('%d', previous.policy_version), false)
append(KEYS[2], KEYS[3], KEYS[4], full, false)
if previous.policy_version ~= 0 then
  redis.call('HINCRBY', KEYS[5], string.format('%d:%s', previous.policy_version, previous.value), -1)
end
return remember(KEYS[1], 0, 1, full)
"""
)

CHOOSE = (
    APPEND
    + """
-- KEYS dedupe comparison left_facts right_facts stream current unread; ARGV judgement_key event event_id now
local again = remembered(KEYS[1])
if again then return again end
if redis.call('EXISTS', KEYS[2]) == 0 then return {'missing'} end
local left, left_refusal = answered(KEYS[3])
local right, right_refusal = answered(KEYS[4])
if left_refusal or right_refusal then return left_refusal or right_refusal end
local current, previous = lookup(KEYS[6])
local event = cjson.decode(ARGV[2])
if is_judgement(previous) and says_the_same(previous, event) then
  return remember(KEYS[1], 0, 0, current)
end
-- Saying why, after the reveal, leaves the blind choice as it was made.
local blind = redis.call('HSETNX', KEYS[2], 'revealed_at', ARGV[4]) == 1
  or (is_judgement(previous) and previous.value == event.value and previous.trains)
local whole = left[1] == 'done' and right[1] == 'done' and left[3] == '1' and right[3] == '1'
local trains = blind and whole and event.value ~= 'skip'
local full = extend(ARGV[2], previous, left[2], trains)
append(KEYS[5], KEYS[6], KEYS[7], full, trains)
return remember(KEYS[1], is_judgement(previous) and 0 or 1, 1, full)
"""
)

COMMIT_BATCH = """
-- KEYS cursor batches unread since_policy; ARGV batch_id first_entry last_entry, then judgement_key event_id..
if redis.call('LINDEX', KEYS[2], -1) == ARGV[1] then return {'ok'} end
if (redis.call('GET', KEYS[1]) or '0-0') ~= ARGV[2] then return {'conflict'} end
local taken = 0
for i = 4, #ARGV, 2 do
  -- A judgement changed since the collection waits under its new event for the next batch.
  if redis.call('HGET', KEYS[3], ARGV[i]) == ARGV[i + 1] then
    taken = taken + redis.call('HDEL', KEYS[3], ARGV[i])
  end
end
redis.call('SET', KEYS[1], ARGV[3])
redis.call('RPUSH', KEYS[2], ARGV[1])
redis.call('INCRBY', KEYS[4], taken)
return {'ok'}
"""

_FENCED = """
-- A training that lost its lease, or whose job has ended, holds an old fence.
local function stale(job, fence)
  if fence == '' then return false end
  return redis.call('HGET', job, 'fence') ~= fence or redis.call('HGET', job, 'state') ~= '"running"'
end
"""

PUBLISH = (
    _FENCED
    + """
-- KEYS live ledger states job; ARGV expected version record checkpoint_id fence
if redis.call('HGET', KEYS[2], ARGV[2]) == ARGV[3] then return {'ok'} end
if stale(KEYS[4], ARGV[5]) then return {'stale'} end
local live = redis.call('GET', KEYS[1]) or '0'
if live ~= ARGV[1] then return {'conflict', live} end
local before = redis.call('HGET', KEYS[2], live)
if before then
  redis.call('HSET', KEYS[3], cjson.decode(before).checkpoint_id, 'retired')
end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
redis.call('HSET', KEYS[3], ARGV[4], 'live')
redis.call('SET', KEYS[1], ARGV[2])
return {'ok'}
"""
)

SET_REWARD = (
    _FENCED
    + """
-- KEYS reward job; ARGV record fence
if stale(KEYS[2], ARGV[2]) then return {'stale'} end
redis.call('SET', KEYS[1], ARGV[1])
return {'ok'}
"""
)

JOB_CREATE = """
-- KEYS active jobs job; ARGV job_id, then field json ...
local active = redis.call('GET', KEYS[1])
if active then return {active == ARGV[1] and 'ok' or 'conflict'} end
if redis.call('EXISTS', KEYS[3]) == 1 then return {'conflict'} end
redis.call('HSET', KEYS[3], unpack(ARGV, 2))
redis.call('SET', KEYS[1], ARGV[1])
redis.call('LPUSH', KEYS[2], ARGV[1])
return {'ok'}
"""

_NOW = """
local function now()
  local time = redis.call('TIME')
  return string.format('%d.%06d', time[1], time[2])
end
"""

JOB_CLAIM = (
    _NOW
    + """
-- KEYS job lease active; ARGV job_id owner milliseconds most_attempts
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return {'missing'} end
if state ~= '"queued"' and state ~= '"running"' then return {'conflict'} end
local owner = redis.call('GET', KEYS[2])
if owner == ARGV[2] then return {'ok'} end
if owner then return {'conflict'} end
if tonumber(redis.call('HGET', KEYS[1], 'attempts')) >= tonumber(ARGV[4]) then
  local error = redis.call('HGET', KEYS[1], 'error')
  if error == 'null' then error = cjson.encode('its process ended ' .. ARGV[4] .. ' times without a word') end
  redis.call('HSET', KEYS[1], 'state', '"dead"', 'finished_at', now(), 'error', error)
  if redis.call('GET', KEYS[3]) == ARGV[1] then redis.call('DEL', KEYS[3]) end
  return {'conflict'}
end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('HINCRBY', KEYS[1], 'attempts', 1)
redis.call('HINCRBY', KEYS[1], 'fence', 1)
redis.call('HSET', KEYS[1], 'state', '"running"', 'stage', '""', 'progress', '0.0')
if redis.call('HGET', KEYS[1], 'started_at') == 'null' then
  redis.call('HSET', KEYS[1], 'started_at', now())
end
return {'ok'}
"""
)

JOB_EXTEND = """
-- KEYS job lease; ARGV owner fence milliseconds
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return {'stale'} end
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[2] then return {'stale'} end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return {'ok'}
"""

JOB_RELEASE = """
-- KEYS lease job; ARGV owner stopped_on_purpose
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
  if ARGV[2] == '1' then redis.call('HINCRBY', KEYS[2], 'attempts', -1) end
end
return {'ok'}
"""

JOB_PROGRESS = (
    _FENCED
    + """
-- KEYS job; ARGV fence stage fraction, then field json ...
if stale(KEYS[1], ARGV[1]) then return {'stale'} end
if tonumber(ARGV[3]) > tonumber(redis.call('HGET', KEYS[1], 'progress')) then
  redis.call('HSET', KEYS[1], 'progress', ARGV[3])
end
redis.call('HSET', KEYS[1], 'stage', ARGV[2], unpack(ARGV, 4))
return {'ok'}
"""
)

JOB_FINISH = (
    _NOW
    + """
-- KEYS job lease active; ARGV job_id fence state, then field json ...
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[2] then return {'stale'} end
local state = redis.call('HGET', KEYS[1], 'state')
if state == ARGV[3] then return {'ok'} end
if state ~= '"running"' then return {'stale'} end
redis.call('HSET', KEYS[1], 'state', ARGV[3], 'finished_at', now(), unpack(ARGV, 4))
redis.call('DEL', KEYS[2])
if redis.call('GET', KEYS[3]) == ARGV[1] then redis.call('DEL', KEYS[3]) end
return {'ok'}
"""
)
