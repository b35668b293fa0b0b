"""The transitions of a job as Lua scripts: each an atomic compare-and-set on state and attempt.

Keys given to each script: the record's hash, its event stream, and the prefix of the indices
(sorted sets of ids by sequence number, one per state and one of all). Times are Redis' own, in
milliseconds, so that no two machines' clocks are ever compared. Replies are ``{status, detail…}``;
every transition may be sent twice by the attempt that owns it, with the same reply. The last
argument of each is how many seconds a tombstone outlives its record.
"""

from __future__ import annotations

from jobs import idempotency

_PRELUDE = """
local record, events, prefix = KEYS[1], KEYS[2], KEYS[3]
local id, tombstone_s = ARGV[1], ARGV[#ARGV]

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function index(name) return prefix .. 'index:' .. name end

local function add_to(name, seq, owner)
  redis.call('ZADD', index(name), seq, id)
  redis.call('ZADD', index(name) .. ':' .. owner, seq, id)
end

local function emit(kind, data)
  redis.call('XADD', events, 'MAXLEN', '~', 2000, '*', 'type', kind, 'data', data)
end

-- the line of waiting jobs, all and by group, in the order of their turns (jobs/schedule.py)
local function stand_in_line()
  local found = redis.call('HMGET', record, 'turn', 'group')
  redis.call('ZADD', prefix .. 'line', found[1] or 0, id)
  redis.call('ZADD', prefix .. 'line:' .. (found[2] or ''), found[1] or 0, id)
end

local function leave_the_line()
  redis.call('ZREM', prefix .. 'line', id)
  redis.call('ZREM', prefix .. 'line:' .. (redis.call('HGET', record, 'group') or ''), id)
end

local function move(from, to)
  if to == 'queued' then stand_in_line() elseif from == 'queued' then leave_the_line() end
  redis.call('HSET', record, 'state', to)
  local found = redis.call('HMGET', record, 'seq', 'owner', 'batch')
  if found[3] then
    redis.call('HINCRBY', prefix .. 'batch:' .. found[3], from, -1)
    redis.call('HINCRBY', prefix .. 'batch:' .. found[3], to, 1)
  end
  local owner = found[2] or 'local'
  redis.call('ZREM', index(from), id)
  redis.call('ZREM', index(from) .. ':' .. owner, id)
  add_to(to, found[1], owner)
end

local function sweep(attempt, delay_ms)
  redis.call('ZADD', prefix .. 'sweep', now() + delay_ms, id .. '/' .. attempt .. '/1')
end

-- attempts that count: those that a worker gave back on purpose do not
local function used()
  local found = redis.call('HMGET', record, 'attempt', 'released')
  return tonumber(found[1]) - tonumber(found[2] or 0)
end

-- leave word in the outbox, if anybody wants to be told
local function tell(kind, about, owner, state, at, url, failure)
  if url == '' and redis.call('EXISTS', prefix .. 'webhooks:' .. owner) == 0 then return end
  redis.call('XADD', prefix .. 'outbox', '*', 'kind', kind, 'id', about, 'owner', owner,
    'state', state, 'at', at, 'url', url, 'failure', failure)
end

-- with its last job a batch ends; the reconciler then writes its manifest
local function end_batch(ttl_s)
  local batch = redis.call('HGET', record, 'batch')
  local key = batch and prefix .. 'batch:' .. batch
  local found = batch and redis.call('HMGET', key, 'queued', 'running', 'owner')
  if not batch or tonumber(found[1] or 0) + tonumber(found[2] or 0) > 0 then return end
  redis.call('HSET', key, 'finished_at', now())
  redis.call('EXPIRE', key, ttl_s)
  redis.call('EXPIRE', key .. ':items', ttl_s)
  redis.call('SET', key .. ':owner', found[3], 'EX', ttl_s + tombstone_s)
  redis.call('SADD', prefix .. 'batches:ended', batch)
  tell('batch', batch, found[3], 'finished', now(), '', '')
end

-- a job of a batch is told of with its batch
local function notify(state, owner)
  local found = redis.call('HMGET', record, 'webhook_url', 'failure', 'finished_at', 'batch')
  if found[4] and not found[1] then return end
  tell('generation', id, owner, state, found[3], found[1] or '', found[2] or '')
end

local function finish(from, to, ttl_s)
  move(from, to)
  redis.call('HSET', record, 'finished_at', now())
  redis.call('HDEL', record, 'lease_until', 'previews')
  redis.call('EXPIRE', record, ttl_s)
  redis.call('ZADD', prefix .. 'expiring', now() + ttl_s * 1000, id)
  local owner = redis.call('HGET', record, 'owner') or 'local'
  redis.call('SET', record .. ':owner', owner, 'EX', ttl_s + tombstone_s)
  notify(to, owner)
  end_batch(ttl_s)
end

-- nil when the attempt owns the running job, else why it does not
local function not_owner(attempt)
  local found = redis.call('HMGET', record, 'state', 'attempt')
  if not found[1] then return {'missing'} end
  if found[1] == 'running' and found[2] == attempt then return nil end
  if found[1] == 'canceled' and found[2] == attempt then return {'canceled'} end
  return {'stale', found[1], found[2]}
end
"""

_ADMIT = """
-- a new job's turn, from the JSON of jobs/schedule.py
local function schedule(owner, slot)
  local flow = slot.lane .. ':' .. owner
  local finish = tonumber(redis.call('ZSCORE', prefix .. 'flows', flow) or '0')
  local turn = math.max(finish, tonumber(redis.call('GET', prefix .. 'virtual_time') or '0'))
  redis.call('ZADD', prefix .. 'flows', turn + slot.cost / slot.weight, flow)
  redis.call('HSET', record, 'turn', turn, 'lane', slot.lane, 'group', slot.group,
    'images', slot.images, 'pixels', slot.pixels)
  if slot.batch then
    redis.call('HSET', record, 'batch', slot.batch, 'position', slot.position,
      'custom_id', slot.custom_id)
    redis.call('HINCRBY', prefix .. 'batch:' .. slot.batch, 'queued', 1)
  end
  stand_in_line()
end

local function full(limit, more)
  local active = redis.call('ZCARD', index('queued')) + redis.call('ZCARD', index('running'))
  return active + more > tonumber(limit) and {'full', tostring(active)} or nil
end

local function admit(job, request, request_id, owner, place)
  id, record = job, prefix .. 'job:' .. job
  events = record .. ':events'
  local seq, created = redis.call('INCR', prefix .. 'sequence'), string.format('%d', now())
  redis.call('HSET', record, 'id', id, 'seq', seq, 'state', 'queued', 'attempt', 0,
    'request', request, 'request_id', request_id, 'owner', owner, 'created_at', created)
  add_to('all', seq, owner)
  add_to('queued', seq, owner)
  schedule(owner, cjson.decode(place))
  emit('queued', '{}')
  return created
end
"""

# KEYS[4]: the idempotency key's entry
# ARGV: id, limit, request JSON, request id, owner, fingerprint ("": no idempotency key), its TTL,
#   place in the line as JSON, webhook URL or ""
CREATE = (
    _PRELUDE
    + _ADMIT
    + idempotency.LUA
    + """
local created = redis.call('HGET', record, 'created_at')
if created then return {'ok', created} end
local fingerprint = ARGV[6]
local earlier = fingerprint ~= '' and settled(KEYS[4], fingerprint)
if earlier then return earlier end
local refusal = full(ARGV[2], 1)
if refusal then return refusal end
created = admit(id, ARGV[3], ARGV[4], ARGV[5], ARGV[8])
if ARGV[9] ~= '' then redis.call('HSET', record, 'webhook_url', ARGV[9]) end
if fingerprint ~= '' then settle(KEYS[4], fingerprint, id, ARGV[7]) end
return {'ok', created}
"""
)

# ARGV: id, worker, nonce of this call, lease in ms, most attempts
START = (
    _PRELUDE
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
    _PRELUDE
    + """
local refusal = not_owner(ARGV[2])
if refusal then return refusal end
redis.call('HSET', record, 'lease_until', now() + ARGV[3])
return {'ok'}
"""
)

# ARGV: id, attempt, progress JSON
PROGRESS = (
    _PRELUDE
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
    _PRELUDE
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
    _PRELUDE
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
    _PRELUDE
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
    _PRELUDE
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
    _PRELUDE
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
    _PRELUDE
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
    _PRELUDE
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

# KEYS[4]: the idempotency key's entry
# ARGV: batch id, limit, request id, owner, fingerprint, its TTL, then for each item its job's id,
#   request JSON and place in the line as JSON. All of them are admitted, or none.
CREATE_BATCH = (
    _PRELUDE
    + _ADMIT
    + idempotency.LUA
    + """
local batch, key = id, prefix .. 'batch:' .. id
local created = redis.call('HGET', key, 'created_at')
if created then return {'ok', created} end
local fingerprint = ARGV[5]
local earlier = fingerprint ~= '' and settled(KEYS[4], fingerprint)
if earlier then return earlier end
local count = (#ARGV - 7) / 3
local refusal = full(ARGV[2], count)
if refusal then return refusal end
created = string.format('%d', now())
redis.call('HSET', key, 'id', batch, 'owner', ARGV[4], 'request_id', ARGV[3], 'total', count,
  'created_at', created)
for item = 0, count - 1 do
  local first = 7 + 3 * item
  admit(ARGV[first], ARGV[first + 1], ARGV[3], ARGV[4], ARGV[first + 2])
  redis.call('RPUSH', key .. ':items', ARGV[first])
end
redis.call('ZADD', prefix .. 'batches', created, batch)
if fingerprint ~= '' then settle(KEYS[4], fingerprint, batch, ARGV[6]) end
return {'ok', created}
"""
)

# ARGV: batch id, limit, request id, then for each item its position, the id of the job that
#   failed, of the new one, request JSON and place. A job that does not stand there failed is left.
RETRY_BATCH = (
    _PRELUDE
    + _ADMIT
    + """
local key = prefix .. 'batch:' .. id
local owner = redis.call('HGET', key, 'owner')
if not owner then return {'missing'} end
local count = (#ARGV - 4) / 5
local refusal = full(ARGV[2], count)
if refusal then return refusal end
local retried = 0
for item = 0, count - 1 do
  local first = 4 + 5 * item
  local position, old, new = ARGV[first], ARGV[first + 1], ARGV[first + 2]
  local state = redis.call('HGET', prefix .. 'job:' .. old, 'state')
  local stands = redis.call('LINDEX', key .. ':items', position) == old
  if stands and state == 'failed' then
    redis.call('HDEL', prefix .. 'job:' .. old, 'batch')
    redis.call('HINCRBY', key, state, -1)
    redis.call('LSET', key .. ':items', position, new)
    admit(new, ARGV[first + 3], ARGV[3], owner, ARGV[first + 4])
    retried = retried + 1
  end
end
if retried > 0 then
  redis.call('HDEL', key, 'finished_at')
  redis.call('PERSIST', key)
  redis.call('PERSIST', key .. ':items')
  redis.call('DEL', key .. ':owner')
  redis.call('SREM', prefix .. 'batches:ended', ARGV[1])
end
return {'ok', tostring(retried)}
"""
)
