//! What a warp knows of clusters other than its own.

/// How many releases are known at each place, and how many launches of each rank are known to be over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// Place and number of entries, by ascending place.
    places: Vec<(u32, u32)>,
    /// By rank; missing ones are 0. Empty where a single launch runs.
    launches: Vec<u32>,
    /// Places when those were last dropped that launches make needless.
    pruned: usize,
}

/// Places beyond which it is worth while to look for needless ones, and the growth since then.
const MANY: usize = 64;

impl Known {
    pub fn is_empty(&self) -> bool {
        self.places.is_empty() && self.launches.is_empty()
    }

    /// Numbers that it takes.
    pub fn size(&self) -> usize {
        2 * self.places.len() + self.launches.len()
    }

    /// Place and number of known entries, by ascending place.
    pub fn places(&self) -> &[(u32, u32)] {
        &self.places
    }

    /// Known entries of a place.
    pub fn entries(&self, place: u32) -> u32 {
        self.places.binary_search_by_key(&place, |p| p.0).map_or(0, |i| self.places[i].1)
    }

    /// Launches of a rank that are known to be over.
    pub fn launches(&self, rank: u32) -> u32 {
        self.launches.get(rank as usize).copied().unwrap_or(0)
    }

    /// Learns of the first `n` entries of a place.
    pub fn learn(&mut self, place: u32, n: u32) {
        match self.places.binary_search_by_key(&place, |p| p.0) {
            Ok(i) => self.places[i].1 = self.places[i].1.max(n),
            Err(i) => self.places.insert(i, (place, n)),
        }
    }

    /// Learns that a rank's first `n` launches are over.
    pub fn learn_launches(&mut self, rank: u32, n: u32) {
        if n > self.launches(rank) {
            self.launches.resize(self.launches.len().max(rank as usize + 1), 0);
            self.launches[rank as usize] = n;
        }
    }

    /// Learns what another one knows.
    pub fn join(&mut self, other: &Known) {
        if self.launches.len() < other.launches.len() {
            self.launches.resize(other.launches.len(), 0);
        }
        self.launches.iter_mut().zip(&other.launches).for_each(|(a, b)| *a = (*a).max(*b));
        if other.places.iter().all(|(place, n)| self.entries(*place) >= *n) {
            return;
        }
        let (mut merged, mut mine) =
            (Vec::with_capacity(self.places.len() + other.places.len()), self.places.iter().peekable());
        for &(place, n) in &other.places {
            while let Some(before) = mine.next_if(|p| p.0 < place) {
                merged.push(*before);
            }
            let own = mine.next_if(|p| p.0 == place).map_or(0, |p| p.1);
            merged.push((place, own.max(n)));
        }
        merged.extend(mine);
        self.places = merged;
    }

    /// Whether so many places were learned since the last [`prune`](Known::prune) that another is worth while.
    pub fn is_long(&self) -> bool {
        !self.launches.is_empty() && self.places.len() > MANY + 2 * self.pruned
    }

    /// Drops the places for which `is_needless` holds, of their number of known entries.
    pub fn prune(&mut self, is_needless: impl Fn(&Known, u32, u32) -> bool) {
        let mut places = std::mem::take(&mut self.places);
        places.retain(|(place, n)| !is_needless(self, *place, *n));
        (self.pruned, self.places) = (places.len(), places);
    }
}

#[cfg(test)]
mod tests {
    use super::Known;

    fn of(places: &[(u32, u32)]) -> Known {
        let mut known = Known::default();
        places.iter().for_each(|(place, n)| known.learn(*place, *n));
        known
    }

    #[test]
    fn the_later_of_two_is_known() {
        let mut known = of(&[(1, 5), (3, 1)]);
        known.join(&of(&[(0, 2), (1, 4), (3, 2), (9, 1)]));
        assert_eq!(known.places(), [(0, 2), (1, 5), (3, 2), (9, 1)]);
        known.learn_launches(2, 4);
        known.learn_launches(2, 3);
        assert_eq!((known.launches(2), known.launches(7)), (4, 0));
    }

    #[test]
    fn needless_places_are_dropped() {
        let mut known = of(&(0..100).map(|place| (place, 1)).collect::<Vec<_>>());
        assert!(!known.is_long());
        known.learn_launches(0, 1);
        assert!(known.is_long());
        known.prune(|known, place, _| place < 90 && known.launches(0) > 0);
        assert!(known.places().len() == 10 && !known.is_long());
    }
}
