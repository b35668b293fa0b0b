"""How jobs are admitted, as Lua scripts: one, a batch of them, the failed ones of a batch anew.

Each is one atomic step: admission counts what waits and runs, and a batch is admitted whole or not
at all. What the scripts share, and their keys: jobs/prelude.py.
"""

from __future__ import annotations

from jobs import idempotency, prelude

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
    prelude.PRELUDE
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

# KEYS[4]: the idempotency key's entry
# ARGV: batch id, limit, request id, owner, fingerprint, its TTL, then for each item its job's id,
#   request JSON and place in the line as JSON. All of them are admitted, or none.
CREATE_BATCH = (
    prelude.PRELUDE
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
    prelude.PRELUDE
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
