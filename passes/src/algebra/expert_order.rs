//! Rows in the order of experts.

/// Slots that are dispatched, ordered by expert and then by slot; a row is a place in this list.
pub fn slots_by_expert(ids: &[i64], n_experts: usize) -> Vec<usize> {
    (0..n_experts as i64).flat_map(|e| (0..ids.len()).filter(move |&s| ids[s] == e)).collect()
}

/// The row of each slot; none for one that is not dispatched.
pub fn rows_of_slots(ids: &[i64], n_experts: usize) -> Vec<Option<usize>> {
    let mut rows = vec![None; ids.len()];
    for (row, slot) in slots_by_expert(ids, n_experts).into_iter().enumerate() {
        rows[slot] = Some(row);
    }
    rows
}
