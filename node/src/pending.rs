//! Handshakes under way: those of one address never keep others out.

use std::net::{IpAddr, Ipv6Addr};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

/// Handshakes at the same time.
pub const HANDSHAKES_MAX: usize = 64;
/// Handshakes of one address at the same time.
const PER_ADDRESS_MAX: usize = 32;

/// Handshakes under way. There is always room for one more: where it is full, the oldest handshake of
/// the address that has the most makes room.
#[derive(Debug, Default)]
pub struct Pending {
    tasks: JoinSet<()>,
    /// Oldest first.
    all: Vec<(Id, IpAddr, AbortHandle)>,
}

impl Pending {
    /// Runs the handshake of a caller at `address`; gives the address whose handshake was dropped for it.
    pub fn begin(
        &mut self,
        address: IpAddr,
        handshake: impl Future<Output = ()> + Send + 'static,
    ) -> Option<IpAddr> {
        let line = line(address);
        let of = |line: IpAddr| self.all.iter().filter(|(_, of, _)| *of == line).count();
        let crowded = if of(line) >= PER_ADDRESS_MAX {
            Some(line)
        } else if self.all.len() >= HANDSHAKES_MAX {
            self.all.iter().rev().map(|(_, line, _)| *line).max_by_key(|line| of(*line))
        } else {
            None
        };
        let oldest = self.all.iter().position(|(_, line, _)| Some(*line) == crowded);
        if let Some(place) = oldest {
            self.all.remove(place).2.abort();
        }
        let task = self.tasks.spawn(handshake);
        self.all.push((task.id(), line, task));
        crowded
    }

    /// Waits until a handshake is done; for ever while there is none.
    pub async fn done(&mut self) {
        let id = match self.tasks.join_next_with_id().await {
            Some(Ok((id, ()))) => id,
            Some(Err(e)) => JoinError::id(&e),
            None => return std::future::pending().await,
        };
        self.all.retain(|(known, ..)| *known != id);
    }
}

/// What counts as one address: who has one of IPv6 has 2^64 of them.
fn line(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn silent(pending: &mut Pending, address: &str) -> Option<IpAddr> {
        pending.begin(address.parse().unwrap(), std::future::pending())
    }

    #[tokio::test]
    async fn a_crowd_makes_room_for_others_and_not_the_other_way_round() {
        let mut pending = Pending::default();
        assert_eq!(silent(&mut pending, "127.0.0.1"), None);
        let crowd: IpAddr = "127.0.0.2".parse().unwrap();
        for n in 0..200 {
            let dropped = silent(&mut pending, "127.0.0.2");
            assert_eq!(dropped, (n >= PER_ADDRESS_MAX).then_some(crowd), "{n}");
        }
        assert_eq!(pending.all.len(), PER_ADDRESS_MAX + 1);
        for n in 0..40 {
            silent(&mut pending, &format!("127.0.1.{n}"));
        }
        assert_eq!(pending.all.len(), HANDSHAKES_MAX);
        assert_eq!(pending.all.iter().filter(|(_, line, _)| *line != crowd).count(), 41);
        // Dropped handshakes end; the others go on.
        while pending.tasks.len() > HANDSHAKES_MAX {
            pending.done().await;
        }
        assert_eq!(pending.all.len(), HANDSHAKES_MAX);
    }

    #[tokio::test]
    async fn what_is_done_makes_room() {
        let mut pending = Pending::default();
        for _ in 0..200 {
            let dropped = pending.begin("127.0.0.1".parse().unwrap(), std::future::ready(()));
            assert_eq!(dropped, None);
            pending.done().await;
        }
        assert!(pending.all.is_empty() && pending.tasks.is_empty());
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let of = |text: &str| line(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::3"), of("2001:db8:1:2:ffff::1"));
        assert_ne!(of("2001:db8:1:2::3"), of("2001:db8:1:3::3"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_ne!(of("::ffff:192.0.2.1"), of("::ffff:192.0.2.2"), "IPv4 by its other name");
    }
}
