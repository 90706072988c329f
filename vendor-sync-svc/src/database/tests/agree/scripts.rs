//! Orders that can lose, and many by chance.

use chassis::testing::seeds;

use super::*;

/// The vendor's word is resolved, and its letter carried.
async fn brought(play: &mut Play<'_>, vendor: usize, field: &'static str, number: i64, minute: i64) {
    play.vendor(vendor, field, number, minute).await;
    play.resolved().await;
    play.carry().await;
}

#[tokio::test]
async fn a_column_that_somebody_changed_since_holds_back_no_other() {
    played("one column", async |play| {
        play.row().await;
        play.app("venue_name", 5, -60).await;
        play.vendor(0, "venue_name", 6, -70).await;
        play.vendor(1, "guest_count", 7, -65).await;
        while play.resolved().await {}
        while play.carry().await {}
    })
    .await;
}

#[tokio::test]
async fn a_vendor_that_speaks_of_a_row_before_it_is_known_speaks_of_that_row() {
    played("too early", async |play| {
        brought(play, 0, "venue_name", 6, -50).await;
        brought(play, 1, "guest_count", 7, -100).await;
        play.row().await;
        brought(play, 1, "guest_count", 8, -40).await;
    })
    .await;
}

#[tokio::test]
async fn a_rows_word_that_lost_is_written_over() {
    played("a late commit", async |play| {
        play.row().await;
        brought(play, 0, "venue_name", 6, -50).await;
        // Begun before, and committed after.
        play.app("venue_name", 5, -60).await;
    })
    .await;
}

#[tokio::test]
async fn a_write_that_nobody_noted_is_known_once_it_comes_back() {
    played("a crash", async |play| {
        play.row().await;
        brought(play, 1, "venue_name", 8, -20).await;
        play.vendor(0, "guest_count", 6, -50).await;
        play.resolved().await;
        play.carry_and_die().await;
        play.vendor(1, "guest_count", 7, -45).await;
        play.resolved().await;
        while play.carry().await {}
    })
    .await;
}

#[tokio::test]
async fn what_is_said_while_the_row_is_written_is_merged() {
    for minute in [-40, -60] {
        played("while it is written", async |play| {
            play.row().await;
            play.vendor(0, "venue_name", 6, -50).await;
            play.resolved().await;
            play.carry_behind("venue_name", 5, minute).await;
        })
        .await;
    }
}

#[tokio::test]
async fn a_value_that_was_chosen_again_is_heard_though_it_was_written_over() {
    played("chosen again", async |play| {
        play.row().await;
        play.app("venue_name", 5, -80).await;
        play.row().await;
        play.app("venue_name", 6, -70).await;
        play.app("venue_name", 5, -65).await;
        brought(play, 0, "venue_name", 7, -75).await;
    })
    .await;
}

#[tokio::test]
async fn older_images_that_come_again_set_nothing_back() {
    played("images again", async |play| {
        play.row().await;
        for (vendor, field, number, minute) in
            [(0, "guest_count", 6, -50), (1, "venue_name", 7, -20), (0, "guest_count", 8, -45)]
        {
            brought(play, vendor, field, number, minute).await;
            play.row().await;
        }
        play.rows_again(3).await;
        play.rows_again(2).await;
    })
    .await;
}

#[tokio::test]
async fn an_image_from_before_our_write_is_no_word_of_the_applications() {
    played("an image from before", async |play| {
        play.row().await;
        brought(play, 0, "guest_count", 6, -50).await;
        play.row().await;
        play.app("venue_name", 5, -20).await;
        brought(play, 1, "guest_count", 8, -40).await;
        play.row().await;
    })
    .await;
}

/// By chance: xorshift.
struct Chance(u64);

impl Chance {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % below as u64).expect("small")
    }
}

const STEPS: i64 = 40;

async fn by_chance(play: &mut Play<'_>, chance: &mut Chance) {
    // Each thing is said at a time of its own.
    let mut minutes: Vec<i64> = (0..STEPS).collect();
    for last in (1..minutes.len()).rev() {
        minutes.swap(last, chance.next(last + 1));
    }
    for (number, minute) in (100..).zip(minutes) {
        let field = FIELDS[chance.next(FIELDS.len())];
        match chance.next(30) {
            0..4 => play.app(field, number, minute).await,
            4..10 => play.vendor(chance.next(2), field, number, minute).await,
            10..15 => drop(play.resolved().await),
            15..20 => drop(play.row().await),
            20..26 => drop(play.carry().await),
            26 => play.carry_and_die().await,
            27 => play.carry_behind(field, number, minute).await,
            _ => play.rows_again(1 + i64::try_from(chance.next(4)).expect("small")).await,
        }
    }
}

/// `WEDSYNC_TEST_SEEDS` says how many; one that fails is named, and played again by `WEDSYNC_TEST_SEED`.
#[tokio::test]
async fn whatever_meets_on_its_way_all_say_the_same_in_the_end() {
    in_a_database(async |world| {
        for seed in seeds(2) {
            let mut play = Play::open(&world, seed.is_multiple_of(2)).await;
            play.begins().await;
            play.exact = play.full;
            by_chance(&mut play, &mut Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)).await;
            play.ends(&format!("seed {seed}")).await;
        }
    })
    .await;
}
