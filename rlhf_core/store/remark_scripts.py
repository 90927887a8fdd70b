"""The Lua scripts of reports and reviews: see scripts.py."""

from __future__ import annotations

from rlhf_core.store.scripts import APPEND

REMARK = (
    APPEND
    + """
-- KEYS dedupe facts stream current unread index; ARGV judgement_key event event_id now kind
local again = remembered(KEYS[1])
if again then return again end
local facts, refusal = answered(KEYS[2])
if refusal then return refusal end
local current, previous = lookup(KEYS[4])
local first = not is_judgement(previous)
if not first and says_the_same(previous, cjson.decode(ARGV[2])) then
  return remember(KEYS[1], 0, 0, current)
end
-- What was cut off may be reported, and learned from, as what was said to its end: harm needs no end.
local trains = facts[1] ~= 'error' and facts[3] == '1'
local full = extend(ARGV[2], previous, facts[2], trains)
append(KEYS[3], KEYS[4], KEYS[5], full, trains)
redis.call('ZADD', KEYS[6], ARGV[4], ARGV[1])
if first then redis.call('HINCRBY', KEYS[2], ARGV[5], 1) end
return remember(KEYS[1], first and 1 or 0, 1, full)
"""
)

UNREMARK = (
    APPEND
    + """
-- KEYS dedupe facts stream current unread index; ARGV judgement_key event event_id now kind
local again = remembered(KEYS[1])
if again then return again end
local current, previous = lookup(KEYS[4])
if not is_judgement(previous) then return {'missing'} end
local full = extend(ARGV[2], previous, string.format('%d', previous.policy_version), false)
append(KEYS[3], KEYS[4], KEYS[5], full, false)
redis.call('ZREM', KEYS[6], ARGV[1])
redis.call('HINCRBY', KEYS[2], ARGV[5], -1)
return remember(KEYS[1], 0, 1, full)
"""
)
