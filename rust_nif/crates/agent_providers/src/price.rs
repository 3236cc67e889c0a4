//! What tokens cost. Every amount is an integer of pico-dollars, so that sums are exact; a micro-dollar is a million of them.
//!
//! A price of so many micro-dollars per million tokens is the same number in pico-dollars per token.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use agent_proto::agents::v1 as pb;
use serde::Deserialize;

/// Pico-dollars in a micro-dollar.
pub const PICO_PER_MICRO: i64 = 1_000_000;

/// A day in seconds.
const DAY_S: u64 = 24 * 3600;

/// An amount in micro-dollars, rounded once; never less than what is known.
pub fn micros(pico: i64) -> i64 {
    pico.div_euclid(PICO_PER_MICRO) + i64::from(pico.rem_euclid(PICO_PER_MICRO) * 2 >= PICO_PER_MICRO)
}

/// One entry of a model's prices: pico-dollars per token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Entry")]
pub struct Price {
    /// Day from which it holds, counted from 1970.
    pub from_day: i64,
    /// The same as a date.
    pub date: String,
    /// Where it was read; empty: in the configuration.
    pub source: String,
    /// Holds for requests with more input than this, in tokens.
    pub above: i64,
    /// Of the input.
    pub input: i64,
    /// Of the output.
    pub output: i64,
    /// Of input that was read from the provider's cache.
    pub cache_read: i64,
    /// Of input that was written to it for minutes.
    pub cache_write: i64,
    /// Of input that was written to it for an hour.
    pub cache_write_1h: i64,
    /// Of output that is reasoning.
    pub reasoning: i64,
    /// Of a request, in pico-dollars.
    pub request: i64,
}

#[derive(Deserialize)]
struct Entry {
    valid_from: String,
    #[serde(default)]
    source: String,
    /// The day on which somebody compared it with its source; empty: nobody said so.
    #[serde(default)]
    checked: String,
    #[serde(default)]
    above: i64,
    input_micros: i64,
    output_micros: i64,
    cache_read_micros: Option<i64>,
    cache_write_5m_micros: Option<i64>,
    cache_write_1h_micros: Option<i64>,
    reasoning_micros: Option<i64>,
    #[serde(default)]
    request_micros: i64,
}

impl From<Entry> for Price {
    fn from(e: Entry) -> Self {
        Self {
            from_day: day_of(&e.valid_from),
            above: e.above,
            input: e.input_micros,
            output: e.output_micros,
            cache_read: e.cache_read_micros.unwrap_or(e.input_micros),
            cache_write: e.cache_write_5m_micros.unwrap_or(e.input_micros),
            cache_write_1h: e.cache_write_1h_micros.unwrap_or(e.input_micros),
            reasoning: e.reasoning_micros.unwrap_or(e.output_micros),
            request: e.request_micros.saturating_mul(PICO_PER_MICRO),
            date: e.valid_from,
            source: if e.checked.is_empty() { e.source } else { format!("{}, read on {}", e.source, e.checked) },
        }
    }
}

/// Days from 1970 to a date; one that is none is never reached.
fn day_of(date: &str) -> i64 {
    let mut parts = date.splitn(3, '-').map(str::parse::<i64>);
    let (Some(Ok(year)), Some(Ok(month)), Some(Ok(day))) = (parts.next(), parts.next(), parts.next()) else { return i64::MAX };
    // Years begin in March, so that the leap day is the last one.
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn today() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs() / DAY_S).unwrap_or(0))
}

/// The prices of one model. None at all: they are not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Prices(pub Vec<Price>);

impl Prices {
    /// What costs nothing, and is known to.
    pub fn free() -> Self {
        Self(vec![Price::default()])
    }

    /// Whether nothing is known.
    pub fn unknown(&self) -> bool {
        self.at(0).is_none()
    }

    /// What holds today for so much input: of the highest tier the newest entry.
    pub fn at(&self, input_tokens: i64) -> Option<&Price> {
        self.on(today(), input_tokens)
    }

    fn on(&self, day: i64, input_tokens: i64) -> Option<&Price> {
        let holds = |p: &&Price| p.from_day <= day && (p.above == 0 || p.above < input_tokens);
        self.0.iter().filter(holds).max_by_key(|p| (p.above, p.from_day))
    }

    /// Cost of a request in pico-dollars; none where the price is not known.
    pub fn cost(&self, usage: &pb::Usage) -> Option<i64> {
        Some(cost(self.at(usage.input_tokens)?, usage))
    }

    /// The most that a request of so many tokens may cost, in pico-dollars: every tier that it may reach, the dearest kind of token.
    pub fn at_most(&self, input_tokens: i64, output_tokens: i64) -> Option<i64> {
        let day = today();
        self.on(day, 0)?;
        let reached = self.0.iter().filter(|p| p.from_day <= day && (p.above == 0 || p.above < input_tokens));
        let worst = |p: &Price| {
            let input = p.input.max(p.cache_read).max(p.cache_write).max(p.cache_write_1h);
            sum([(input_tokens, input), (output_tokens, p.output.max(p.reasoning)), (1, p.request)])
        };
        reached.map(worst).max()
    }

    /// Tokens of output that an amount pays for, beside so much input.
    pub fn output_for(&self, pico: i64, input_tokens: i64) -> i64 {
        let Some(input) = self.at_most(input_tokens, 0) else { return 0 };
        let one = self.at_most(input_tokens, 1).unwrap_or(i64::MAX).saturating_sub(input);
        let left = pico.saturating_sub(input);
        if left < 0 { 0 } else { left.checked_div(one).unwrap_or(i64::MAX) }
    }

    /// As clients see them: micro-dollars per million tokens, by kind; tiers carry what they are above.
    pub fn view(&self) -> BTreeMap<String, i64> {
        let day = today();
        let mut view = BTreeMap::new();
        let mut current: Vec<&Price> = self.0.iter().filter(|p| p.from_day <= day).collect();
        current.sort_by_key(|p| p.from_day);
        for p in current {
            let tier = if p.above == 0 { String::new() } else { format!("_above_{}", p.above) };
            for (kind, price) in [("input", p.input), ("output", p.output), ("cache_read", p.cache_read)] {
                view.insert(format!("{kind}{tier}"), price);
            }
            let own = [("cache_write_5m", p.cache_write, p.input), ("cache_write_1h", p.cache_write_1h, p.input)];
            for (kind, price, default) in own.into_iter().chain([("reasoning", p.reasoning, p.output)]) {
                if price != default {
                    view.insert(format!("{kind}{tier}"), price);
                }
            }
            if p.request != 0 {
                view.insert(format!("request{tier}"), p.request / PICO_PER_MICRO);
            }
        }
        view
    }

    /// Date and source of the newest entry.
    pub fn source(&self) -> (String, String) {
        let day = today();
        let newest = self.0.iter().filter(|p| p.from_day <= day).max_by_key(|p| p.from_day);
        newest.map(|p| (p.date.clone(), p.source.clone())).unwrap_or_default()
    }
}

fn sum<const N: usize>(parts: [(i64, i64); N]) -> i64 {
    let total: i128 = parts.iter().map(|(tokens, price)| i128::from((*tokens).max(0)) * i128::from((*price).max(0))).sum();
    i64::try_from(total).unwrap_or(i64::MAX)
}

/// All counts are made disjoint, so the cost is a plain sum. Counts that cannot be (more cached than there is input) are cut.
fn cost(p: &Price, u: &pb::Usage) -> i64 {
    let input = u.input_tokens.max(0);
    let cached = u.cached_tokens.clamp(0, input);
    let all_written = u.cache_write_tokens.clamp(0, input - cached);
    let written_1h = u.cache_write_1h_tokens.clamp(0, all_written);
    let written = all_written - written_1h;
    let output = u.output_tokens.max(0);
    let reasoning = u.reasoning_tokens.clamp(0, output);
    sum([
        (input - cached - written - written_1h, p.input),
        (cached, p.cache_read),
        (written, p.cache_write),
        (written_1h, p.cache_write_1h),
        (output - reasoning, p.output),
        (reasoning, p.reasoning),
        (1, p.request),
    ])
}

/// An entry of the list: whose price it is.
#[derive(Clone, Debug, Deserialize)]
pub struct Listed {
    /// Model as its provider names it.
    pub model: String,
    /// Host at which it holds.
    pub host: String,
    /// The price.
    #[serde(flatten)]
    pub price: Price,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prices(json: serde_json::Value) -> Prices {
        serde_json::from_value(json).unwrap()
    }

    fn usage(input: i64, cached: i64, output: i64, reasoning: i64) -> pb::Usage {
        pb::Usage { input_tokens: input, cached_tokens: cached, output_tokens: output, reasoning_tokens: reasoning, ..Default::default() }
    }

    fn invoice(list: &Prices, u: &pb::Usage) -> i64 {
        list.cost(u).unwrap()
    }

    // Golden invoices: the sums were made by hand from the price pages, in pico-dollars.
    #[test]
    fn an_invoice_with_cached_input_is_right_to_the_last_digit() {
        let list = prices(serde_json::json!([
            {"valid_from": "2025-04-14", "input_micros": 400_000, "cache_read_micros": 100_000, "output_micros": 1_600_000}
        ]));
        // 10,000 of input of which 8,192 cached, 500 of output: 1,808*0.4 + 8,192*0.1 + 500*1.6 = 723.2 + 819.2 + 800 micro-dollars.
        assert_eq!(invoice(&list, &usage(10_000, 8192, 500, 0)), 2_342_400_000);
        assert_eq!(micros(2_342_400_000), 2342);
        // $0.0375 per million: what nano-dollars would round.
        let cheap = prices(serde_json::json!([{"valid_from": "2025-01-01", "input_micros": 37_500, "output_micros": 150_000}]));
        assert_eq!(invoice(&cheap, &usage(1, 0, 0, 0)), 37_500);
    }

    #[test]
    fn reasoning_and_requests_have_prices_of_their_own() {
        let list = prices(serde_json::json!([
            {"valid_from": "2025-01-01", "input_micros": 1_100_000, "output_micros": 4_400_000, "reasoning_micros": 2_000_000, "request_micros": 5000}
        ]));
        assert_eq!(invoice(&list, &usage(1000, 0, 900, 700)), 1_100_000_000 + 200 * 4_400_000 + 700 * 2_000_000 + 5_000_000_000);
        let plain = prices(serde_json::json!([{"valid_from": "2025-01-01", "input_micros": 1_100_000, "output_micros": 4_400_000}]));
        assert_eq!(invoice(&plain, &usage(0, 0, 900, 700)), 900 * 4_400_000, "reasoning is output where it has no price");
    }

    #[test]
    fn a_long_context_is_priced_whole_by_its_tier_and_cache_writes_by_their_time() {
        let list = prices(serde_json::json!([
            {"valid_from": "2025-05-22", "input_micros": 3_000_000, "cache_read_micros": 300_000, "cache_write_5m_micros": 3_750_000,
             "cache_write_1h_micros": 6_000_000, "output_micros": 15_000_000},
            {"valid_from": "2025-08-12", "above": 200_000, "input_micros": 6_000_000, "output_micros": 22_500_000}
        ]));
        assert_eq!(invoice(&list, &usage(200_000, 0, 1000, 0)), 200_000 * 3_000_000 + 1000 * 15_000_000);
        assert_eq!(invoice(&list, &usage(200_001, 0, 1000, 0)), 200_001 * 6_000_000 + 1000 * 22_500_000);
        let written =
            pb::Usage { input_tokens: 1000, cached_tokens: 100, cache_write_tokens: 500, cache_write_1h_tokens: 300, ..Default::default() };
        assert_eq!(invoice(&list, &written), 400 * 3_000_000 + 100 * 300_000 + 200 * 3_750_000 + 300 * 6_000_000);
    }

    #[test]
    fn the_newest_price_that_holds_counts_and_a_future_one_does_not() {
        let list = prices(serde_json::json!([
            {"valid_from": "2020-01-01", "input_micros": 1, "output_micros": 1},
            {"valid_from": "2024-02-29", "input_micros": 2, "output_micros": 2},
            {"valid_from": "2999-01-01", "input_micros": 3, "output_micros": 3}
        ]));
        assert_eq!(list.at(0).unwrap().input, 2);
        assert_eq!((day_of("1970-01-01"), day_of("2024-02-29"), day_of("2024-03-01")), (0, 19_782, 19_783));
        assert!(Prices::default().unknown() && Prices::default().cost(&usage(1, 0, 1, 0)).is_none(), "unknown is not zero");
        assert_eq!(Prices::free().cost(&usage(1, 0, 1, 0)), Some(0));
    }

    proptest::proptest! {
        #[test]
        fn no_cost_is_above_what_was_said_to_be_the_most(
            input in 0i64..1_000_000, cached in 0i64..2_000_000, written in 0i64..1_000_000, hour in 0i64..1_000_000, output in 0i64..100_000, thought in -5i64..200_000,
            p in proptest::array::uniform6(0i64..100_000_000), above in 1i64..500_000,
        ) {
            let price = Price { input: p[0], output: p[1], cache_read: p[2], cache_write: p[3], reasoning: p[4], cache_write_1h: p[0] / 2, ..Price::default() };
            let list = Prices(vec![price.clone(), Price { above, input: p[5], ..price }]);
            let u = pb::Usage { input_tokens: input, cached_tokens: cached, output_tokens: output, reasoning_tokens: thought, cache_write_tokens: written, cache_write_1h_tokens: hour };
            let (cost, most) = (list.cost(&u).unwrap(), list.at_most(input, output).unwrap());
            proptest::prop_assert!(cost >= 0 && cost <= most);
            let tokens = list.output_for(most, input);
            proptest::prop_assert!(tokens >= output && (tokens == i64::MAX || list.at_most(input, tokens).unwrap() <= most));
        }
    }
}
