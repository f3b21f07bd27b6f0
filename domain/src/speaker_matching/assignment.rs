//! Who gets what when all choose together: the assignment with the greatest total, no column to two rows.
//!
//! The Hungarian method by shortest augmenting paths, with potentials (Kuhn 1955, Munkres 1957, Jonker and
//! Volgenant 1987), in the form of <https://cp-algorithms.com/graph/hungarian-algorithm.html>, over rows
//! that list their few columns in place of a matrix. Weights are whole numbers, so the total is exactly the greatest.

/// Returns the column of each row, `None` where it is better rejected. A row lists its columns, each below
/// `columns`, with what it gains there; rejection gains 0. Of equal totals the same one is returned each time.
pub(super) fn assign(rows: &[Vec<(usize, i64)>], columns: usize) -> Vec<Option<usize>> {
    // A column of its own rejects each row, so that a row always finds a place. The first of equal columns is
    // taken, so the last of equal rows is rejected.
    let width = columns + rows.len();
    let mut row_potential = vec![0; rows.len()];
    let mut column_potential = vec![0; width];
    let mut owner: Vec<Option<usize>> = vec![None; width];
    for root in 0..rows.len() {
        let mut slack = vec![i64::MAX; width];
        let mut came_from: Vec<Option<usize>> = vec![None; width];
        let mut visited = vec![false; width];
        let (mut row, mut last) = (root, None);
        let mut free = loop {
            let rejected = (width - 1 - row, 0);
            for (column, gain) in rows[row].iter().copied().chain([rejected]) {
                let reduced = -gain - row_potential[row] - column_potential[column];
                if !visited[column] && reduced < slack[column] {
                    slack[column] = reduced;
                    came_from[column] = last;
                }
            }
            let nearest = (0..width)
                .filter(|column| !visited[*column])
                .min_by_key(|column| slack[*column])
                .expect("the root's own rejection is free");
            let step = slack[nearest];
            row_potential[root] += step;
            for column in 0..width {
                if visited[column] {
                    row_potential[owner[column].expect("the search went on from it")] += step;
                    column_potential[column] -= step;
                } else if slack[column] < i64::MAX {
                    slack[column] -= step;
                }
            }
            match owner[nearest] {
                Some(next) => row = next,
                None => break nearest,
            }
            visited[nearest] = true;
            last = Some(nearest);
        };
        // Each column on the path goes to the row before it, the first one to the root.
        while let Some(before) = came_from[free] {
            owner[free] = owner[before];
            free = before;
        }
        owner[free] = Some(root);
    }
    let mut assigned = vec![None; rows.len()];
    for (column, row) in owner.into_iter().take(columns).enumerate() {
        if let Some(row) = row {
            assigned[row] = Some(column);
        }
    }
    assigned
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_row_gives_way_where_the_other_gains_more() {
        assert_eq!(assign(&[vec![(0, 9), (1, 8)], vec![(0, 8)]], 2), [Some(1), Some(0)]);
        assert_eq!(assign(&[vec![(0, 9), (1, 2)], vec![(0, 5)]], 2), [Some(0), None]);
        assert_eq!(assign(&[vec![], vec![(0, -1)]], 1), [None, None]);
        assert_eq!(assign(&[], 0), []);
    }

    #[test]
    fn of_rows_and_columns_that_gain_the_same_the_first_ones_find_each_other() {
        let row = vec![(0, 1), (1, 1)];
        assert_eq!(assign(&[row.clone(), row.clone(), row], 2), [Some(0), Some(1), None]);
    }

    fn gain(rows: &[Vec<(usize, i64)>], assigned: &[Option<usize>]) -> i64 {
        let of_row = |(row, column): (&Vec<(usize, i64)>, &Option<usize>)| {
            column.map_or(0, |column| row.iter().find(|(listed, _)| *listed == column).unwrap().1)
        };
        rows.iter().zip(assigned).map(of_row).sum()
    }

    /// The greatest total, by trying everything.
    fn greatest(rows: &[Vec<(usize, i64)>], taken: &mut Vec<usize>) -> i64 {
        let Some((row, others)) = rows.split_first() else { return 0 };
        let mut best = greatest(others, taken);
        for (column, gain) in row {
            if !taken.contains(column) {
                taken.push(*column);
                best = best.max(gain + greatest(others, taken));
                taken.pop();
            }
        }
        best
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_other_assignment_gains_more(rows in vec(btree_map(0..6_usize, 0..20_i64, 0..6), 0..6)) {
            let rows: Vec<Vec<_>> = rows.into_iter().map(|row| row.into_iter().collect()).collect();
            let assigned = assign(&rows, 6);
            let mut columns: Vec<_> = assigned.iter().flatten().collect();
            columns.sort_unstable();
            prop_assert!(columns.windows(2).all(|pair| pair[0] != pair[1]), "no column to two rows");
            prop_assert_eq!(gain(&rows, &assigned), greatest(&rows, &mut vec![]));
        }
    }
}
