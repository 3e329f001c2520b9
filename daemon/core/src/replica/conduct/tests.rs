//! The bucket and the patience by themselves, and what counts as a lapse.

use super::*;

/// More lapses than a leader may have.
const MANY: u32 = MAX_LAPSES as u32 + 1;
const F: u32 = 1;

fn conduct() -> Conduct {
    Conduct::new(F as usize)
}

fn suspecting() -> Conduct {
    let mut conduct = conduct();
    conduct.lapse(MANY, 0);
    conduct
}

#[test]
fn lapses_that_are_not_made_good_are_a_reason() {
    let mut conduct = conduct();
    for _ in 0..MAX_LAPSES {
        assert!(!conduct.is_suspect());
        conduct.lapse(1, 0);
    }
    assert!(!conduct.is_suspect(), "a connection may break");
    conduct.lapse(1, 0);
    assert!(conduct.is_suspect());
}

#[test]
fn merits_make_lapses_good() {
    let mut conduct = conduct();
    for _ in 0..1000 {
        conduct.lapse(1, 0);
        conduct.note_merits(LAPSE_MERITS);
        assert!(!conduct.is_suspect(), "one in so many is let pass for ever");
    }
    let mut conduct = suspecting();
    conduct.note_merits(2 * LAPSE_MERITS - 1);
    assert!(conduct.is_suspect(), "more than half is left");
    conduct.note_merits(1);
    assert!(!conduct.is_suspect());
}

#[test]
fn a_flood_fills_the_bucket_to_twice_the_limit() {
    let mut conduct = conduct();
    conduct.lapse(u32::MAX, 0);
    assert!(conduct.is_bounded());
    conduct.note_merits(3 * LAPSE_MERITS * MAX_LAPSES / 2);
    assert!(!conduct.is_suspect());
}

#[test]
fn without_new_lapses_a_suspicion_ends_with_time() {
    let timing = Timing::default();
    let mut conduct = suspecting();
    conduct.tick(STANDS_TIMEOUTS * timing.timeout_us, &timing, 0);
    assert!(conduct.is_suspect());
    conduct.tick(STANDS_TIMEOUTS * timing.timeout_us + 1, &timing, 0);
    assert!(!conduct.is_suspect());
    conduct.lapse(2, 0);
    assert!(conduct.is_suspect(), "half was left");
}

#[test]
fn with_others_half_is_enough_and_nothing_is_not() {
    let timing = Timing::default();
    let others = F as usize + 1;
    let mut conduct = conduct();
    conduct.tick(0, &timing, others);
    conduct.lapse(1, 0);
    conduct.tick(0, &timing, others);
    assert!(!conduct.is_suspect());
    conduct.lapse(1, 0);
    conduct.tick(0, &timing, others - 1);
    assert!(!conduct.is_suspect(), "they may all be liars");
    conduct.tick(0, &timing, others);
    assert!(conduct.is_suspect());
}

#[test]
fn the_limit_doubles_with_more_than_f_terms_that_ended_so() {
    let mut conduct = suspecting();
    conduct.enter_term();
    assert!(!conduct.is_suspect(), "the bucket is empty");
    conduct.lapse(MANY, 0);
    assert!(conduct.is_suspect(), "it was one liar so far");
    conduct.enter_term();
    conduct.lapse(2 * MANY - 2, 0);
    assert!(!conduct.is_suspect(), "now twice as many are let pass");
    conduct.enter_term();
    conduct.lapse(2 * MANY - 1, 0);
    assert!(conduct.is_suspect(), "a term that ended without a suspicion does not count");
}

#[test]
fn patience_has_an_end_and_falls_back() {
    let mut conduct = conduct();
    for _ in 0..F + 2 * MAX_DOUBLINGS {
        conduct.lapse(u32::MAX, 0);
        conduct.enter_term();
        assert!(conduct.is_bounded());
    }
    assert_eq!(conduct.left, F + MAX_DOUBLINGS);
    conduct.lapse(u32::MAX, 0);
    for left in (0..F + MAX_DOUBLINGS).rev() {
        conduct.note_merits(FORGIVING_MERITS - 1);
        assert_eq!(conduct.left, left + 1);
        conduct.note_merits(1);
        assert_eq!(conduct.left, left);
        assert!(conduct.is_bounded());
    }
    conduct.lapse(MANY, 0);
    assert!(conduct.is_suspect());
}

#[test]
fn a_heartbeat_that_is_missing_is_a_lapse() {
    let mut shown = Shown::default();
    let lapses = [7, 8, 8, 10, 9, 11, 50, u64::MAX, 0].map(|number| shown.heartbeat(number));
    assert_eq!(lapses, [0, 0, 0, 1, 0, 0, 1, 1, 0]);
}

#[test]
fn a_block_that_is_missing_is_a_lapse() {
    let mut shown = Shown::default();
    let lapses = [7, 8, 8, 10, 9, 11, 19, 20].map(|index| shown.append(Index(index), None));
    assert_eq!(lapses, [0, 0, 0, 1, 0, 0, 1, 0]);
}

#[test]
fn a_prepare_certificate_that_is_missing_is_a_lapse_one_block_later() {
    let mut shown = Shown::default();
    let mut lapses = Vec::new();
    // That of block 8 comes late, that of 9 never, that of 10 is made up for by 11's, 12 comes in order.
    for (index, prepared) in [(7, 7), (8, 0), (9, 8), (10, 0), (11, 11), (12, 0), (13, 12), (14, 13)] {
        let committed = (index > 7).then(|| Index(index - 1));
        lapses.push(shown.append(Index(index), committed));
        shown.prepared = shown.prepared.max(Index(prepared));
    }
    assert_eq!(lapses, [0, 0, 0, 0, 1, 0, 0, 0]);
}

#[test]
fn certificates_of_blocks_that_were_not_shown_are_not_missed() {
    let mut shown = Shown::default();
    for index in 7..20 {
        assert_eq!(shown.append(Index(index), Some(Index(6))), 0, "this member came later");
    }
}
