use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use metrics::Gauge;
use parking_lot::Mutex;

/// How many connections there may be, and how many there are.
#[derive(Debug)]
pub(crate) struct Places {
    total_max: usize,
    per_address_max: usize,
    /// The metric that shows how many are taken.
    gauge: fn() -> Gauge,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Places {
    pub(crate) fn new(total_max: usize, per_address_max: usize, gauge: fn() -> Gauge) -> Arc<Self> {
        Arc::new(Self { total_max, per_address_max, gauge, taken: Mutex::default() })
    }

    /// How many are taken now.
    pub(crate) fn taken(&self) -> usize {
        self.taken.lock().total
    }

    pub(crate) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut taken = self.taken.lock();
        if taken.total >= self.total_max {
            return None;
        }
        let here = taken.by_address.get(&address).copied().unwrap_or_default();
        if here >= self.per_address_max {
            return None;
        }
        taken.by_address.insert(address, here + 1);
        taken.total += 1;
        drop(taken);
        (self.gauge)().increment(1);
        Some(Place { places: Arc::clone(self), address })
    }
}

/// One connection's place, from its handshake until the last handle to it is gone.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        taken.total -= 1;
        if let Some(here) = taken.by_address.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                taken.by_address.remove(&self.address);
            }
        }
        drop(taken);
        (self.places.gauge)().decrement(1);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn places_end_for_one_address_and_for_all() {
        let places = Places::new(3, 2, Gauge::noop);
        let [one, other] = [1, 2].map(|last| IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)));
        let first = places.take(one).expect("free");
        let _second = places.take(one).expect("free");
        assert!(places.take(one).is_none(), "the address's end");
        let _third = places.take(other).expect("free");
        assert!(places.take(other).is_none(), "the end of all");
        drop(first);
        assert_eq!(places.taken(), 2);
        assert!(places.take(one).is_some(), "what was left can be taken again");
        assert_eq!(places.taken(), 2);
    }
}
