//! Which endpoint serves a call: pure. Everything is expressed in dollars for one answer, so that cost, time and failures compare.

/// What a second is worth where the configuration says nothing, in dollars.
const SECOND: f64 = 0.0005;
/// Seconds that a failed attempt costs.
const FAILED_S: f64 = 3.0;
/// And its part of the price.
const FAILED_COST: f64 = 0.1;
/// What the whole way from a useless answer to a perfect one is worth, in dollars.
const GOOD_ANSWER: f64 = 0.02;
/// The quality of whoever has none configured, where others of the model have one.
pub(crate) const UNKNOWN_QUALITY: f64 = 0.5;
/// How fast an endpoint that is dearer loses its share, and the share that every one keeps, so that it is tried now and then.
const SPREAD: f64 = 0.12;
const FLOOR: f64 = 0.01;
/// Scores that differ by less are the same.
const SAME: f64 = 1e-9;

/// Factors on quality, cost and time; 1 by default.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Weights {
    pub(crate) quality: f64,
    pub(crate) cost: f64,
    pub(crate) latency: f64,
}

/// An endpoint that could serve the call.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// Smaller first; a later tier serves only where the one before is empty.
    pub(crate) priority: i32,
    /// As configured, 1 by default.
    pub(crate) weight: f64,
    /// Dollars for the call; None: not known, which counts as nothing.
    pub(crate) cost: Option<f64>,
    pub(crate) first_token_s: f64,
    pub(crate) answer_s: f64,
    /// Calls under way by those that it may have.
    pub(crate) load: f64,
    pub(crate) success: f64,
    /// From 0 to 1; None: of nobody among the candidates it is known, and it decides nothing.
    pub(crate) quality: Option<f64>,
}

/// Parts of a candidate's score.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Terms {
    pub(crate) cost: f64,
    pub(crate) latency: f64,
    pub(crate) failure: f64,
    /// What its answers are worth less than perfect ones.
    pub(crate) quality: f64,
    /// Dollars for one answer; smaller is better.
    pub(crate) total: f64,
}

/// Expected dollars for one answer.
pub(crate) fn terms(c: &Candidate, w: Weights) -> Terms {
    let money = c.cost.unwrap_or(0.0);
    let cost = w.cost * money;
    let latency = w.latency * SECOND * (c.first_token_s * (1.0 + c.load) + c.answer_s);
    let success = c.success.clamp(0.01, 1.0);
    let failure = (1.0 - success) * (w.latency * SECOND * FAILED_S + w.cost * FAILED_COST * money);
    let quality = c.quality.map_or(0.0, |q| w.quality * GOOD_ANSWER * (1.0 - q.clamp(0.0, 1.0)));
    Terms { cost, latency, failure, quality, total: (cost + latency + failure) / success + quality }
}

/// The candidates in the order in which they are to be asked. `chance` gives numbers from 0 to 1; the same ones give the same order.
pub(crate) fn order(candidates: &[Candidate], w: Weights, mut chance: impl FnMut() -> f64) -> Vec<usize> {
    let totals: Vec<f64> = candidates.iter().map(|c| terms(c, w).total).collect();
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by(|&a, &b| candidates[a].priority.cmp(&candidates[b].priority).then(totals[a].total_cmp(&totals[b])).then(a.cmp(&b)));
    let Some(&best) = order.first() else { return order };
    let tier = order.iter().take_while(|&&i| candidates[i].priority == candidates[best].priority).count();
    if tier > 1 {
        // Two are drawn by weight, and the better one serves: no herd runs to one endpoint, and none is forgotten.
        let least = totals[best].max(f64::MIN_POSITIVE);
        let raw = |&i: &usize| candidates[i].weight.max(0.0) * (-(totals[i] - least) / (SPREAD * least)).exp();
        let mut shares: Vec<f64> = order[..tier].iter().map(raw).collect();
        let sum = shares.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        shares.iter_mut().for_each(|share| *share = (*share / sum).max(FLOOR));
        let all: f64 = shares.iter().sum();
        let mut draw = || {
            let mut left = chance() * all;
            shares.iter().position(|share| {
                left -= share;
                left <= 0.0
            })
        };
        let (one, two) = (draw().unwrap_or(0), draw().unwrap_or(0));
        let better = totals[order[two]] < totals[order[one]] * (1.0 - SAME);
        let first = order.remove(if better { two } else { one });
        order.insert(0, first);
    }
    order
}

/// The candidates by priority, and in the order of the file: nothing is weighed.
pub(crate) fn as_written(candidates: &[Candidate]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by_key(|&i| candidates[i].priority);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EVEN: Weights = Weights { quality: 1.0, cost: 1.0, latency: 1.0 };

    fn endpoint(priority: i32, cost: f64, first_token_s: f64, success: f64) -> Candidate {
        Candidate { priority, weight: 1.0, cost: Some(cost), first_token_s, answer_s: 0.0, load: 0.0, success, quality: None }
    }

    /// Numbers from 0 to 1 that look random.
    fn numbers(mut seed: u64) -> impl FnMut() -> f64 {
        move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            #[allow(clippy::cast_precision_loss)]
            let n = (seed >> 11) as f64 / (1u64 << 53) as f64;
            n
        }
    }

    fn share_of_first(candidates: &[Candidate], w: Weights) -> f64 {
        let mut chance = numbers(7);
        let n = (0..4000).filter(|_| order(candidates, w, &mut chance)[0] == 0).count();
        f64::from(u32::try_from(n).unwrap()) / 4000.0
    }

    #[test]
    fn equals_share_and_the_better_one_serves_most_without_silencing_the_other() {
        let even = share_of_first(&[endpoint(1, 0.001, 0.5, 0.95), endpoint(1, 0.001, 0.5, 0.95)], EVEN);
        assert!((0.47..0.53).contains(&even), "{even}");
        let cheap = share_of_first(&[endpoint(1, 0.001, 0.5, 0.95), endpoint(1, 0.01, 0.5, 0.95)], EVEN);
        assert!(cheap > 0.99, "{cheap}");
        let broken = share_of_first(&[endpoint(1, 0.001, 0.5, 0.05), endpoint(1, 0.002, 0.5, 0.95)], EVEN);
        assert!(broken < 0.05, "{broken}");
    }

    #[test]
    fn a_later_tier_serves_only_behind_the_first_and_weights_turn_the_choice() {
        let tiers = [endpoint(2, 0.0, 0.1, 1.0), endpoint(1, 1.0, 9.0, 0.5)];
        assert_eq!(order(&tiers, EVEN, numbers(1)), vec![1, 0]);
        let dear_and_fast = [endpoint(1, 0.0011, 0.2, 0.95), endpoint(1, 0.0003, 2.0, 0.95)];
        let (cheap, quick) = (Weights { cost: 10.0, latency: 0.1, ..EVEN }, Weights { cost: 0.1, latency: 10.0, ..EVEN });
        assert!(share_of_first(&dear_and_fast, cheap) < 0.05 && share_of_first(&dear_and_fast, quick) > 0.95);
    }

    #[test]
    fn a_better_model_is_worth_its_price_as_far_as_quality_weighs() {
        let of = |cost, quality| Candidate { quality: Some(quality), ..endpoint(1, cost, 0.5, 0.95) };
        let (fair, dear) = ([of(0.001, 0.6), of(0.004, 0.9)], [of(0.001, 0.6), of(0.02, 0.9)]);
        assert!(share_of_first(&fair, EVEN) < 0.05, "0.003 dollars more for 0.006 of quality");
        assert!(share_of_first(&dear, EVEN) > 0.95, "0.019 dollars more");
        assert!(share_of_first(&dear, Weights { quality: 10.0, ..EVEN }) < 0.05);
        assert!(share_of_first(&fair, Weights { quality: 0.1, ..EVEN }) > 0.95);
    }

    proptest! {
        #[test]
        fn every_candidate_is_there_once_tiers_stay_in_order_and_a_seed_decides(
            all in proptest::collection::vec((1i32..4, 0f64..0.1, 0f64..5.0, 0f64..1.0), 0..20), seed: u64,
        ) {
            let all: Vec<Candidate> = all.into_iter().map(|(p, c, t, s)| endpoint(p, c, t, s)).collect();
            let once = order(&all, EVEN, numbers(seed));
            prop_assert_eq!(&once, &order(&all, EVEN, numbers(seed)));
            let mut sorted = once.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..all.len()).collect::<Vec<_>>());
            prop_assert!(once.windows(2).all(|w| all[w[0]].priority <= all[w[1]].priority));
        }
    }
}
