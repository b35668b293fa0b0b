"""The transitions of a job as Lua scripts: each an atomic compare-and-set on state and attempt.

Replies are ``{status, detail…}``; every transition may be sent twice by the attempt that owns it,
with the same reply. The last argument of each is how many seconds a tombstone outlives its record.
Keys, and what the scripts share: jobs/prelude.py; how jobs are admitted: jobs/admission.py.
"""

from __future__ import annotations

from jobs import prelude

# ARGV: id, worker, nonce of this call, lease in ms, most attempts
START = (
    prelude.PRELUDE
    + """
local found = redis.call('HMGET', record, 'state', 'attempt', 'lease_until', 'nonce')
local state, attempt, lease_until, nonce = found[1], found[2], found[3], found[4]
if not state then return {'missing'} end
if state == 'running' and nonce == ARGV[3] then return {'ok', attempt} end
if state == 'running' then
  if tonumber(lease_until) > now() then return {'conflict', state} end
  sweep(attempt, ARGV[4] * 2)
elseif state ~= 'queued' then
  return {'conflict', state}
end
if used() >= tonumber(ARGV[5]) then return {'exhausted', state} end
attempt = tostring(tonumber(attempt) + 1)
if state == 'queued' then move('queued', 'running') end
redis.call('HSET', record, 'attempt', attempt, 'worker', ARGV[2], 'nonce', ARGV[3],
  'lease_until', now() + ARGV[4], 'started_at', now())
redis.call('HDEL', record, 'progress', 'previews')
emit('started', cjson.encode({attempt = tonumber(attempt)}))
return {'ok', attempt}
"""
)

# ARGV: id, attempt, lease in ms
HEARTBEAT = (
    prelude.PRELUDE
    + """
local refusal = not_owner(ARGV[2])
if refusal then return refusal end
redis.call('HSET', record, 'lease_until', now() + ARGV[3])
return {'ok'}
"""
)

# ARGV: id, attempt, progress JSON
PROGRESS = (
    prelude.PRELUDE
    + """
local refusal = not_owner(ARGV[2])
if refusal then return refusal end
redis.call('HSET', record, 'progress', ARGV[3])
emit('progress', ARGV[3])
return {'ok'}
"""
)

# ARGV: id, attempt, event JSON, JSON of all previews of the attempt
PREVIEW = (
    prelude.PRELUDE
    + """
local refusal = not_owner(ARGV[2])
if refusal then return refusal end
redis.call('HSET', record, 'previews', ARGV[4])
emit('preview', ARGV[3])
return {'ok'}
"""
)

# ARGV: id, attempt, state to reach, field to set, its JSON, seconds to keep, sweep delay in ms
FINISH = (
    prelude.PRELUDE
    + """
local found = redis.call('HMGET', record, 'state', 'attempt')
if found[1] == ARGV[3] and found[2] == ARGV[2] then return {'ok'} end
local refusal = not_owner(ARGV[2])
if refusal then return refusal end
redis.call('HSET', record, ARGV[4], ARGV[5])
finish('running', ARGV[3], ARGV[6])
emit(ARGV[3], ARGV[5])
redis.call('EXPIRE', events, ARGV[6])
if ARGV[3] ~= 'succeeded' then sweep(ARGV[2], ARGV[7]) end
return {'ok'}
"""
)

# ARGV: id, attempt, lease in ms; the attempt no longer counts
RELEASE = (
    prelude.PRELUDE
    + """
local refusal = not_owner(ARGV[2])
if refusal then return refusal end
move('running', 'queued')
redis.call('HDEL', record, 'lease_until', 'nonce', 'progress', 'previews', 'worker')
redis.call('HINCRBY', record, 'released', 1)
sweep(ARGV[2], ARGV[3] * 2)
emit('requeued', cjson.encode({reason = 'released'}))
return {'ok'}
"""
)

# ARGV: id, seconds to keep, lease in ms
CANCEL = (
    prelude.PRELUDE
    + """
local found = redis.call('HMGET', record, 'state', 'attempt', 'lease_until')
local state = found[1]
if not state then return {'missing'} end
if state ~= 'queued' and state ~= 'running' then return {'conflict', state} end
redis.call('HSET', record, 'cancel_requested', 1)
if state == 'running' then
  redis.call('ZADD', prefix .. 'canceling', found[3], id)
  sweep(found[2], ARGV[3] * 2)
end
finish(state, 'canceled', ARGV[2])
emit('canceled', '{}')
redis.call('EXPIRE', events, ARGV[2])
return {'ok'}
"""
)

# ARGV: id, attempt
ACKNOWLEDGE_CANCEL = (
    prelude.PRELUDE
    + """
local found = redis.call('HMGET', record, 'state', 'attempt')
if found[1] == 'canceled' and found[2] == ARGV[2] then
  redis.call('ZREM', prefix .. 'canceling', id)
end
return {'ok'}
"""
)

# ARGV: id, most attempts, failure JSON, seconds to keep, lease in ms
EXPIRE_LEASE = (
    prelude.PRELUDE
    + """
local found = redis.call('HMGET', record, 'state', 'attempt', 'lease_until')
if found[1] ~= 'running' or tonumber(found[3]) > now() then return {'alive'} end
sweep(found[2], ARGV[5] * 2)
if used() >= tonumber(ARGV[2]) then
  redis.call('HSET', record, 'failure', ARGV[3])
  finish('running', 'failed', ARGV[4])
  emit('failed', ARGV[3])
  redis.call('EXPIRE', events, ARGV[4])
  return {'failed', found[2]}
end
move('running', 'queued')
redis.call('HDEL', record, 'lease_until', 'nonce', 'progress', 'previews', 'worker')
emit('requeued', cjson.encode({reason = 'worker_lost'}))
return {'requeued', found[2]}
"""
)

# ARGV: "", worker, nonce of this call, lease in ms, most images, most pixels
# The next job of the line, and with it those of its group that there is room for. An interactive
# job takes no batch jobs with it, for which its caller would wait. One that has lost a worker runs
# alone: if it is what killed that worker, its neighbours shall not use up their attempts with it.
TAKE = (
    prelude.PRELUDE
    + """
local memo = prefix .. 'taken:' .. ARGV[3]
local earlier = redis.call('GET', memo)
if earlier then return cjson.decode(earlier) end
local taken = {'ok'}

local function begin(job)
  id, record = job, prefix .. 'job:' .. job
  events = record .. ':events'
  local attempt = redis.call('HINCRBY', record, 'attempt', 1)
  move('queued', 'running')
  redis.call('HSET', record, 'worker', ARGV[2], 'nonce', ARGV[3],
    'lease_until', now() + ARGV[4], 'started_at', now())
  redis.call('HDEL', record, 'progress', 'previews')
  emit('started', cjson.encode({attempt = attempt}))
  taken[#taken + 1] = job
  taken[#taken + 1] = tostring(attempt)
end

local function has_lost_a_worker(job)
  record = prefix .. 'job:' .. job
  return used() > 0
end

local lead = redis.call('ZRANGE', prefix .. 'line', 0, 0, 'WITHSCORES')
if not lead[1] then return {'idle'} end
local alone = has_lost_a_worker(lead[1])
local found = redis.call('HMGET', prefix .. 'job:' .. lead[1], 'group', 'images', 'pixels', 'lane')
local virtual_time = tonumber(redis.call('GET', prefix .. 'virtual_time') or '0')
if tonumber(lead[2]) > virtual_time then redis.call('SET', prefix .. 'virtual_time', lead[2]) end
redis.call('ZREMRANGEBYSCORE', prefix .. 'flows', '-inf', '(' .. lead[2])
begin(lead[1])
local images = tonumber(ARGV[5]) - tonumber(found[2] or 1)
local pixels = tonumber(ARGV[6]) - tonumber(found[3] or 0)
local group = prefix .. 'line:' .. (found[1] or '')
local search = images > 0 and not alone
local candidates = search and redis.call('ZRANGE', group, 0, 4 * images) or {}
for _, job in ipairs(candidates) do
  local size = redis.call('HMGET', prefix .. 'job:' .. job, 'images', 'pixels', 'lane')
  local fits = tonumber(size[1] or 1) <= images and tonumber(size[2] or 0) <= pixels
  local same_lane = found[4] == 'batch' or size[3] == found[4]
  if fits and same_lane and not has_lost_a_worker(job) then
    begin(job)
    images = images - tonumber(size[1] or 1)
    pixels = pixels - tonumber(size[2] or 0)
  end
end
redis.call('SET', memo, cjson.encode(taken), 'EX', 60)
return taken
"""
)
