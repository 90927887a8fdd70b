"""The Lua scripts of reports and reviews: see scripts.py.

They stand in the log beside the judgements, and a batch takes them along; but they are no verdicts, so they neither
fill a batch nor start a training: nothing is noted as unread. An answer waits for a review from its newest report until
the next review.
"""

from __future__ import annotations

from rlhf_core.store.scripts import APPEND

_BEGIN = (
    APPEND
    + """
-- KEYS dedupe facts stream current reported waiting reports_of_it; ARGV judgement_key event event_id now kind target
local again = remembered(KEYS[1])
if again then return again end
local current, previous = lookup(KEYS[4])
"""
)

REMARK = (
    _BEGIN
    + """
local facts, refusal = answered(KEYS[2])
if refusal then return refusal end
local first = not is_judgement(previous)
if not first and says_the_same(previous, cjson.decode(ARGV[2])) then
  return remember(KEYS[1], 0, 0, current)
end
-- What was cut off may be harmful already; whether it would have helped, nobody can say.
local whole = facts[1] == 'done' or (ARGV[5] == 'report' and facts[1] == 'aborted')
local full = extend(ARGV[2], previous, facts[2], whole and facts[3] == '1')
note(KEYS[3], KEYS[4], full)
if first then redis.call('HINCRBY', KEYS[2], ARGV[5], 1) end
if ARGV[5] == 'report' then
  redis.call('ZADD', KEYS[5], ARGV[4], ARGV[6])
  redis.call('ZADD', KEYS[6], ARGV[4], ARGV[6])
  redis.call('ZADD', KEYS[7], ARGV[4], ARGV[1])
else
  redis.call('ZREM', KEYS[6], ARGV[6])
end
return remember(KEYS[1], first and 1 or 0, 1, full)
"""
)

UNREMARK = (
    _BEGIN
    + """
if not is_judgement(previous) then return {'missing'} end
local full = extend(ARGV[2], previous, string.format('%d', previous.policy_version), false)
note(KEYS[3], KEYS[4], full)
local left = redis.call('HINCRBY', KEYS[2], ARGV[5], -1)
if ARGV[5] == 'report' then
  redis.call('ZREM', KEYS[7], ARGV[1])
  if left == 0 then
    redis.call('ZREM', KEYS[5], ARGV[6])
    redis.call('ZREM', KEYS[6], ARGV[6])
  end
elseif left == 0 then
  local reported = redis.call('ZSCORE', KEYS[5], ARGV[6])
  if reported then redis.call('ZADD', KEYS[6], reported, ARGV[6]) end
end
return remember(KEYS[1], 0, 1, full)
"""
)
