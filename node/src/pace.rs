//! How weights may flow to a peer: the direction, the bandwidth and the hours that hospital IT set,
//! and how long a flow may stand still.
//!
//! Goals: the cap is kept to the byte over a second or more, however many transfers share it; a
//! transfer stops between two pieces when its hours end. Not goals: shaping receipts, which are small
//! and always pass.

use crate::contacts::STREAM_WINDOW;
use rondo::ids::SiteId;
use rondo::transfer::CHUNK_MIN_BYTES;
use rondo_proto::peer::Chunk;
use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_stream::{Stream, StreamExt as _};

/// A flow of which nothing moves for this long is dead.
pub const CHUNK_PATIENCE: Duration = Duration::from_secs(30);
/// Slowest flow that counts as alive, in bytes a second; what drips below it is cut.
const SLOWEST: u64 = 32 * 1024;
/// What a flow may catch up after it was held up elsewhere.
const BURST: Duration = Duration::from_millis(100);
/// Slowest disk that counts as working, in bytes a second.
const SLOWEST_DISK: u64 = 8 * 1024 * 1024;
const MINUTES_OF_DAY: u16 = 24 * 60;

/// A flow counts as alive while so many bytes at a time come in time.
const FLOW_BYTES: u64 = CHUNK_MIN_BYTES;

/// How long `bytes` may take to pass before the flow counts as dead.
fn patience(bytes: u64) -> Duration {
    CHUNK_PATIENCE + Duration::from_secs(bytes / SLOWEST)
}

/// How long the answer to the last of `bytes` may take: what is still in flight has to arrive, and all
/// of it is read, checked and written to disk once more.
#[must_use]
pub fn last_patience(bytes: u64) -> Duration {
    patience(u64::from(STREAM_WINDOW)) + Duration::from_secs(bytes / SLOWEST_DISK)
}

/// How long a flow may still keep this side waiting; what this side does meanwhile does not count.
#[derive(Debug)]
pub struct Patience {
    left: Duration,
    moved: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self { left: patience(FLOW_BYTES), moved: 0 }
    }
}

impl Patience {
    /// Waits for the other side.
    ///
    /// # Errors
    /// How long all patience was, once it is used up.
    pub async fn wait<T>(&mut self, step: impl Future<Output = T>) -> Result<T, Duration> {
        let begun = Instant::now();
        let done = timeout(self.left, step).await.map_err(|_| patience(FLOW_BYTES))?;
        self.left = self.left.saturating_sub(begun.elapsed());
        Ok(done)
    }

    /// Notes that `bytes` passed; patience begins anew with enough of them.
    pub fn moved(&mut self, bytes: usize) {
        self.moved += bytes as u64;
        if self.moved >= FLOW_BYTES {
            *self = Self::default();
        }
    }
}

/// As [`Patience`], where nobody can wait: the clock runs from the first look on.
#[derive(Debug)]
pub struct Alarm {
    rings: Pin<Box<Sleep>>,
    moved: u64,
}

impl Default for Alarm {
    fn default() -> Self {
        Self { rings: Box::pin(sleep_until(Instant::now() + patience(FLOW_BYTES))), moved: 0 }
    }
}

impl Alarm {
    /// How long all patience was, once it is used up.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        self.rings.as_mut().poll(cx).map(|()| patience(FLOW_BYTES))
    }

    /// Notes that `bytes` passed; patience begins anew with enough of them.
    pub fn moved(&mut self, bytes: usize) {
        self.moved += bytes as u64;
        if self.moved >= FLOW_BYTES {
            self.moved = 0;
            self.rings.as_mut().reset(Instant::now() + patience(FLOW_BYTES));
        }
    }
}

/// Who calls whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Direction {
    /// Fetch from the peer if it cannot reach this site.
    #[default]
    Automatic,
    /// Never fetch; the peer has to call.
    Push,
    /// Always fetch what the peer has for this site.
    Pull,
}

impl FromStr for Direction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "automatic" => Ok(Self::Automatic),
            "push" => Ok(Self::Push),
            "pull" => Ok(Self::Pull),
            other => Err(format!("`{other}` is no direction; write automatic, push or pull")),
        }
    }
}

/// Times of the day in the machine's time zone; no range means always.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hours(Vec<(u16, u16)>);

impl Hours {
    /// Whether `hour`:`minute` lies in one of the ranges; a range may go over midnight.
    #[must_use]
    pub fn hold(&self, hour: u8, minute: u8) -> bool {
        let now = u16::from(hour) * 60 + u16::from(minute);
        let within = |(from, to): &(u16, u16)| {
            if from < to { (*from..*to).contains(&now) } else { now >= *from || now < *to }
        };
        self.0.is_empty() || self.0.iter().any(within)
    }
}

impl FromStr for Hours {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let minutes = |time: &str| {
            let (hour, minute) = time.trim().split_once(':')?;
            let number = |digits: &str| match digits.as_bytes() {
                [b'0'..=b'9', b'0'..=b'9'] => digits.parse::<u16>().ok(),
                _ => None,
            };
            let (hour, minute) = (number(hour)?, number(minute)?);
            let time = hour * 60 + minute;
            (minute < 60 && time <= MINUTES_OF_DAY).then_some(time)
        };
        let range = |part: &str| {
            let (from, to) = part.split_once('-')?;
            let (from, to) = (minutes(from)?, minutes(to)?);
            (from < MINUTES_OF_DAY && from != to).then_some((from, to))
        };
        let ranges = text.split(',').map(|part| {
            range(part).ok_or_else(|| {
                let part = part.trim();
                format!("`{part}` is no range of hours; write them as 12:00-13:00, 22:00-06:00")
            })
        });
        ranges.collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (from, to)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            let [a, b, c, d] = [from / 60, from % 60, to / 60, to % 60];
            write!(f, "{comma}{a:02}:{b:02}-{c:02}:{d:02}")?;
        }
        Ok(())
    }
}

/// What `node.toml` says about one peer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerRule {
    /// Who calls whom.
    pub direction: Direction,
    /// Most that weights may take, in 10⁶ bits a second.
    pub limit_mbit_s: Option<u32>,
    /// When weights may pass.
    pub hours: Hours,
}

/// The pace of every peer.
#[derive(Debug, Clone, Default)]
pub struct Paces(Arc<Rules>);

#[derive(Debug, Default)]
struct Rules {
    named: BTreeMap<SiteId, Arc<Pace>>,
    /// Most that any peer may be given, in 10⁶ bits a second.
    limit_mbit_s: Option<u32>,
    /// Peers that no rule names; no more than the roster has.
    others: std::sync::Mutex<BTreeMap<SiteId, Arc<Pace>>>,
}

impl Paces {
    /// Puts the rules of the configuration in force, and the cap of the site's policy on all peers.
    #[must_use]
    pub fn new(rules: BTreeMap<SiteId, PeerRule>, limit_mbit_s: Option<u32>) -> Self {
        // Asked for once: the daemon may not be allowed to read the system's time zones later.
        let zone = jiff::tz::TimeZone::system();
        let pace = |mut rule: PeerRule| {
            rule.limit_mbit_s = rule.limit_mbit_s.into_iter().chain(limit_mbit_s).min();
            let zone = zone.clone();
            let clock = move || {
                let now = jiff::Timestamp::now().to_zoned(zone.clone());
                let [hour, minute] = [now.hour(), now.minute()];
                (u8::try_from(hour).unwrap_or(0), u8::try_from(minute).unwrap_or(0))
            };
            Arc::new(Pace::new(rule, clock))
        };
        let named = rules.into_iter().map(|(site, rule)| (site, pace(rule))).collect();
        Self(Arc::new(Rules { named, limit_mbit_s, others: std::sync::Mutex::default() }))
    }

    /// The pace towards `site`.
    #[must_use]
    pub fn of(&self, site: &SiteId) -> Arc<Pace> {
        if let Some(pace) = self.0.named.get(site) {
            return pace.clone();
        }
        let mut others = self.0.others.lock().unwrap_or_else(PoisonError::into_inner);
        let rule = || PeerRule { limit_mbit_s: self.0.limit_mbit_s, ..PeerRule::default() };
        let pace = others.entry(site.clone());
        pace.or_insert_with(|| Arc::new(Pace::new(rule(), || (0, 0)))).clone()
    }
}

type Clock = Box<dyn Fn() -> (u8, u8) + Send + Sync>;

/// The pace of one peer, shared by all transfers to it.
pub struct Pace {
    rule: PeerRule,
    /// Hour and minute of the day.
    clock: Clock,
    /// Until when the bytes that were let through have used up the line.
    used_until: Mutex<Option<Instant>>,
}

impl Default for Pace {
    fn default() -> Self {
        Self::new(PeerRule::default(), || (0, 0))
    }
}

impl fmt::Debug for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rule.fmt(f)
    }
}

/// Why weights no longer flow to a peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Held {
    /// The peer takes nothing.
    #[error("the transfer made no progress for {} s", .0.as_secs())]
    Stalled(Duration),
    /// Whoever passes the chunks on is gone.
    #[error("the connection was closed")]
    Closed,
    /// The hours ended.
    #[error("weights wait for the transfer hours {0}")]
    Hours(Hours),
}

impl Pace {
    fn new(rule: PeerRule, clock: impl Fn() -> (u8, u8) + Send + Sync + 'static) -> Self {
        Self { rule, clock: Box::new(clock), used_until: Mutex::new(None) }
    }

    /// Who calls whom.
    #[must_use]
    pub fn direction(&self) -> Direction {
        self.rule.direction
    }

    /// Whether weights may flow now.
    ///
    /// # Errors
    /// [`Held::Hours`] if they have to wait.
    pub fn open(&self) -> Result<(), Held> {
        let (hour, minute) = (self.clock)();
        let open = self.rule.hours.hold(hour, minute);
        if open { Ok(()) } else { Err(Held::Hours(self.rule.hours.clone())) }
    }

    /// Waits until `bytes` fit under the cap. The bytes are paid for before they leave, so the cap
    /// holds from the first one on; who gives up waiting has used up nothing.
    async fn admit(&self, bytes: usize) -> Result<(), Held> {
        self.open()?;
        let Some(limit) = self.rule.limit_mbit_s else { return Ok(()) };
        let mut used_until = self.used_until.lock().await;
        let due = due(*used_until, Instant::now(), bytes, limit);
        sleep_until(due).await;
        *used_until = Some(due);
        self.open()
    }

    /// Passes `chunks` on to whoever reads from `out`, at this pace, until all are taken.
    ///
    /// # Errors
    /// Why they were not; the rest may be asked for again.
    pub async fn feed<T>(
        &self,
        mut chunks: impl Stream<Item = Chunk> + Unpin,
        out: mpsc::Sender<T>,
        wrap: impl Fn(Chunk) -> T,
    ) -> Result<(), Held> {
        let mut patience = Patience::default();
        while let Some(chunk) = chunks.next().await {
            let bytes = chunk.data.len();
            tokio::select! {
                admitted = self.admit(bytes) => admitted?,
                () = out.closed() => return Err(Held::Closed),
            }
            match patience.wait(out.send(wrap(chunk))).await {
                Ok(Ok(())) => patience.moved(bytes),
                Ok(Err(_)) => return Err(Held::Closed),
                Err(limit) => return Err(Held::Stalled(limit)),
            }
        }
        Ok(())
    }
}

/// When `bytes` more may leave over a line of `limit_mbit_s`.
fn due(used_until: Option<Instant>, now: Instant, bytes: usize, limit_mbit_s: u32) -> Instant {
    let earliest = now.checked_sub(BURST).unwrap_or(now);
    let from = used_until.map_or(now, |used| used.max(earliest));
    #[allow(clippy::cast_precision_loss, reason = "a chunk is far below 2^52 bytes")]
    let seconds = bytes as f64 * 8.0 / (f64::from(limit_mbit_s) * 1e6);
    from + Duration::from_secs_f64(seconds)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU8, Ordering};

    fn chunks(count: u32, bytes: usize) -> impl Stream<Item = Chunk> + Unpin {
        let data = rondo_proto::Bytes::from(vec![1; bytes]);
        let chunk = move |index| Chunk { index, data: data.clone(), ..Chunk::default() };
        tokio_stream::iter((0..count).map(chunk))
    }

    fn rule(limit_mbit_s: Option<u32>, hours: &str) -> PeerRule {
        let hours = if hours.is_empty() { Hours::default() } else { hours.parse().unwrap() };
        PeerRule { limit_mbit_s, hours, ..PeerRule::default() }
    }

    #[test]
    fn hours_may_cross_midnight() {
        for bad in ["", "22", "22:00", "22:00-22:00", "24:00-02:00", "1:00-02:00", "01:60-02:00"] {
            assert!(bad.parse::<Hours>().is_err(), "{bad}");
        }
        assert!("01:00-25:00".parse::<Hours>().is_err() && "+1:00-02:00".parse::<Hours>().is_err());
        let hours: Hours = "12:00-13:00,22:00-06:00".parse().unwrap();
        for (hour, minute, open) in [
            (11, 59, false),
            (12, 0, true),
            (12, 59, true),
            (13, 0, false),
            (21, 59, false),
            (22, 0, true),
            (0, 0, true),
            (5, 59, true),
            (6, 0, false),
        ] {
            assert_eq!(hours.hold(hour, minute), open, "{hour}:{minute}");
        }
        assert_eq!(hours.to_string(), "12:00-13:00, 22:00-06:00");
        assert!(Hours::default().hold(3, 3));
        assert!("00:00-24:00".parse::<Hours>().unwrap().hold(23, 59));
    }

    #[test]
    fn a_cap_is_kept_and_late_wake_ups_are_made_good() {
        let begun = Instant::now();
        let (mut used, mut now) = (None, begun);
        for _ in 0..100 {
            let next = due(used, now, 256 * 1024, 100);
            // The system wakes this task 3 ms late, each time.
            now = next.max(now) + Duration::from_millis(3);
            used = Some(next);
        }
        let ideal = 100.0 * 256.0 * 1024.0 * 8.0 / 100e6;
        let ratio = (now - begun).as_secs_f64() / ideal;
        assert!((1.0..1.02).contains(&ratio), "{ratio}");
        // An hour of silence does not save up more than a moment.
        let later = now + Duration::from_secs(3600);
        assert!(due(used, later, 12_500_000, 100) >= later + Duration::from_millis(899));
    }

    #[tokio::test]
    async fn transfers_share_a_cap() {
        let pace = Arc::new(Pace::new(rule(Some(40), ""), || (0, 0)));
        let begun = Instant::now();
        let flow = || {
            let (pace, (out, mut taken)) = (pace.clone(), mpsc::channel(1));
            tokio::spawn(async move {
                let feed =
                    tokio::spawn(async move { pace.feed(chunks(20, 250_000), out, |c| c).await });
                while taken.recv().await.is_some() {}
                feed.await.unwrap().unwrap();
            })
        };
        let both = [flow(), flow()];
        for one in both {
            one.await.unwrap();
        }
        let ratio = begun.elapsed().as_secs_f64() / (40.0 * 250_000.0 * 8.0 / 40e6);
        assert!((0.999..1.02).contains(&ratio), "{ratio} of the time that the cap leaves");
    }

    #[tokio::test]
    async fn a_flow_stops_between_two_pieces_when_its_hours_end() {
        let hour = Arc::new(AtomicU8::new(7));
        let clock = hour.clone();
        let now = move || (clock.load(Ordering::Relaxed), 0);
        let pace = Pace::new(rule(None, "22:00-06:00"), now);
        let (out, mut taken) = mpsc::channel(1);
        let held = pace.feed(chunks(9, 3), out.clone(), |c| c).await;
        assert_eq!(held, Err(Held::Hours("22:00-06:00".parse().unwrap())));
        assert!(taken.try_recv().is_err());
        hour.store(23, Ordering::Relaxed);
        let end = hour.clone();
        let read = tokio::spawn(async move {
            let mut count = 0;
            while taken.recv().await.is_some() {
                count += 1;
                if count == 3 {
                    end.store(6, Ordering::Relaxed);
                }
            }
            count
        });
        assert!(matches!(pace.feed(chunks(9, 3), out, |c| c).await, Err(Held::Hours(_))));
        assert!((3..=5).contains(&read.await.unwrap()));
        hour.store(22, Ordering::Relaxed);
        assert_eq!(pace.open(), Ok(()));
    }

    #[tokio::test]
    async fn a_drip_uses_up_patience_and_a_flow_does_not() {
        let step = || tokio::time::sleep(Duration::from_millis(250));
        let mut flow = Patience { left: Duration::from_millis(400), moved: 0 };
        assert_eq!(flow.wait(step()).await, Ok(()));
        flow.moved(64);
        assert_eq!(flow.wait(step()).await, Err(patience(FLOW_BYTES)), "a drip");
        flow.moved(usize::try_from(FLOW_BYTES).unwrap() - 64);
        assert_eq!((flow.left, flow.moved), (patience(FLOW_BYTES), 0));
        assert_eq!(flow.wait(step()).await, Ok(()));
    }

    #[tokio::test]
    async fn an_alarm_rings_over_a_drip_and_not_over_a_flow() {
        let soon = Duration::from_millis(300);
        let begun = Instant::now();
        let mut drip = Alarm { rings: Box::pin(sleep_until(begun + soon)), moved: 0 };
        drip.moved(64);
        assert_eq!(std::future::poll_fn(|cx| drip.poll(cx)).await, patience(FLOW_BYTES));
        assert!(begun.elapsed() >= soon);
        drip.moved(usize::try_from(FLOW_BYTES).unwrap() - 64);
        let flow = std::future::poll_fn(|cx| drip.poll(cx));
        assert!(timeout(soon, flow).await.is_err());
    }

    #[test]
    fn slow_is_not_dead() {
        let chunk = 8 * 1024 * 1024;
        assert!(patience(chunk) > Duration::from_secs_f64(f64::from(1 << 23) * 8.0 / 1e6));
        assert!(patience(256 * 1024) < Duration::from_secs(60));
    }
}
