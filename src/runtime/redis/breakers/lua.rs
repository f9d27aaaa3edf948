//! What happens in Redis in one step: a breaker tells what it knows, and is told what is known.
//!
//! | key | what |
//! |---|---|
//! | `{…breaker:NAME}` | a hash: `gen` (generation: the time of the step, in microseconds, or one more than the last), `kind`, `until` (when the rest is over), `relapses`, `by` (process:number of the step), `holder` and `held` (who has the lease, until when), `wanted` (when somebody else asked for it), `born` (when leases were last forgotten) |
//! | `{…breaker:NAME}:news` | a channel: something has changed |
//!
//! A step that was made from what is known holds. One that was made from something older holds if
//! it is the later of the two; but what has opened elsewhere stays as it is, what was said by hand
//! is not overruled by what a breaker saw, and who probed for an open state that is not known any
//! more has probed in vain.
//!
//! A store that knows less than who asks has forgotten: it takes over what that one knows. It does
//! not know then who has the lease, and waits until all that believe to have it have said so.

/// KEYS the hash; ARGV process, generation that it knows, its state or empty, microseconds it still
/// rests, relapses, number of its step or empty, microseconds since, whether the later one holds,
/// what it wants of the lease, microseconds for which it may begin probes, those that a probe may
/// take, channel, TTL in ms, not after or 0. `late`, or: the time, generation, state, microseconds
/// it still rests, relapses, whether the step holds, the lease was granted, somebody has it,
/// somebody else wants it.
pub(in super::super) const REPORT: &str = "
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
if tonumber(ARGV[14]) > 0 and now > tonumber(ARGV[14]) then return {'late', now} end
local me, basis, kind, left = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local lease, span, probe = ARGV[9], tonumber(ARGV[10]), tonumber(ARGV[11])
local about = redis.call('HMGET', KEYS[1], 'gen', 'kind', 'until', 'relapses', 'by', 'holder',
  'held', 'wanted', 'born')
local gen, known, ends = tonumber(about[1] or 0), about[2] or '', tonumber(about[3] or 0)
local relapses, by = tonumber(about[4] or 0), about[5] or ''
local holder, held = about[6] or '', tonumber(about[7] or 0)
local wanted, born = tonumber(about[8] or 0), tonumber(about[9] or 0)
local function whole(number) return string.format('%.0f', number) end
local function tell(generation, from)
  gen, known, ends, relapses, by = generation, kind, now + left, tonumber(ARGV[5]), from
  holder, held, wanted = '', 0, 0
  redis.call('HSET', KEYS[1], 'gen', whole(gen), 'kind', kind, 'until', whole(ends), 'relapses',
    relapses, 'by', by)
  redis.call('HDEL', KEYS[1], 'holder', 'held', 'wanted')
  redis.call('PEXPIRE', KEYS[1], ARGV[13])
  redis.pcall('PUBLISH', ARGV[12], whole(gen))
end

local forgot = gen < basis and kind ~= ''
local taken = 0
if ARGV[6] ~= '' then
  local mine = me .. ':' .. ARGV[6]
  local holds = gen <= basis
  if not holds and by ~= mine then
    local by_hand = kind ~= 'open' and kind ~= 'closed'
    holds = now - tonumber(ARGV[7]) > gen and (ARGV[8] == '1' or kind == 'open')
    if not by_hand and (known == 'forced_open' or known == 'disabled') then holds = false end
    if kind == 'open' and known == 'open' and ends > now then holds = false end
  end
  if by == mine then
    taken = 1
  elseif holds then
    taken = 1
    tell(math.max(now, gen + 1, basis + 1), mine)
  end
elseif forgot then
  tell(basis, me)
elseif gen == 0 and lease == 'ask' then
  -- It was another process's to tell, which is gone.
  tell(now, me)
end
if forgot then
  born = now
  redis.call('HSET', KEYS[1], 'born', whole(born))
  redis.call('PEXPIRE', KEYS[1], ARGV[13])
end

local granted = 0
if lease == 'ask' or lease == 'keep' then
  if known ~= 'open' and gen > 0 and gen <= basis then
    -- It believes something else: this is news to it.
    gen = basis + 1
    redis.call('HSET', KEYS[1], 'gen', whole(gen))
  elseif known == 'open' and (gen == basis or taken == 1) and ends <= now then
    if holder == me or held <= now and (lease == 'keep' or born + span <= now) then
      granted, holder, held = 1, me, now + span + probe
      redis.call('HSET', KEYS[1], 'holder', me, 'held', whole(held))
    elseif holder ~= me then
      wanted = now
      redis.call('HSET', KEYS[1], 'wanted', whole(now))
    end
  end
elseif lease == 'back' and holder == me then
  holder, held = '', 0
  redis.call('HDEL', KEYS[1], 'holder', 'held', 'wanted')
  redis.pcall('PUBLISH', ARGV[12], 'free')
end
if gen > 0 then
  local lives = redis.call('PTTL', KEYS[1])
  if lives >= 0 and lives < tonumber(ARGV[13]) / 2 then redis.call('PEXPIRE', KEYS[1], ARGV[13]) end
end
local probed = held > now and 1 or 0
local others = holder == me and wanted > now - 2000000 and 1 or 0
return {'ok', now, gen, known, ends - now, relapses, taken, granted, probed, others}
";
