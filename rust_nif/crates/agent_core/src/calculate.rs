//! Arithmetic for the tool `calculate`: a small recursive-descent evaluator with bounded work.
//!
//! Grammar: `+ - * / // % ** ^`, parentheses, unary signs, a postfix `%` behind a number at the end of a term ("15% * 80"),
//! the functions `sqrt abs round min max floor ceil`, and the constants `pi` and `e`. Numbers are `f64`; integers up to 2^53 are exact.

/// Longest expression, in bytes.
const MAX_BYTES: usize = 1000;
/// Deepest nesting of parentheses, signs and powers.
const MAX_DEPTH: u32 = 64;

/// Evaluates an expression. The error is a sentence for the model.
pub fn calculate(expression: &str) -> Result<String, String> {
    if expression.len() > MAX_BYTES {
        return Err(format!("the expression has {} characters, at most {MAX_BYTES} are allowed", expression.len()));
    }
    let normal: String = expression
        .chars()
        .map(|c| match c {
            '×' | '·' => '*',
            '÷' => '/',
            '−' => '-',
            other => other,
        })
        .collect();
    let mut p = Parser { chars: normal.chars().collect(), at: 0, depth: 0 };
    let value = p.sum()?;
    p.space();
    if let Some(c) = p.peek() {
        return Err(format!("unexpected \"{c}\" at position {}", p.at + 1));
    }
    if !value.is_finite() {
        return Err("the result is not a finite number".into());
    }
    Ok(format_number(value))
}

/// Prints without binary noise: 0.1 + 0.2 is 0.3.
fn format_number(value: f64) -> String {
    if value == value.trunc() && value.abs() < 9_007_199_254_740_992.0 {
        return format!("{value:.0}").replace("-0", if value == 0.0 { "0" } else { "-0" });
    }
    let short = format!("{value:.12}");
    let trimmed = short.trim_end_matches('0').trim_end_matches('.');
    if trimmed.is_empty() || trimmed == "0" || trimmed == "-0" || value.abs() >= 1e15 { format!("{value:e}") } else { trimmed.to_owned() }
}

struct Parser {
    chars: Vec<char>,
    at: usize,
    depth: u32,
}

impl Parser {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn space(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.at += 1;
        }
    }

    fn eat(&mut self, token: &str) -> bool {
        self.space();
        let n = token.chars().count();
        let hit = self.chars.len() >= self.at + n && self.chars[self.at..self.at + n].iter().copied().eq(token.chars());
        if hit {
            self.at += n;
        }
        hit
    }

    fn deeper<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T, String>) -> Result<T, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH}"));
        }
        let result = f(self);
        self.depth -= 1;
        result
    }

    fn sum(&mut self) -> Result<f64, String> {
        let mut left = self.product()?;
        loop {
            if self.eat("+") {
                left += self.product()?;
            } else if self.eat("-") {
                left -= self.product()?;
            } else {
                return Ok(left);
            }
        }
    }

    fn product(&mut self) -> Result<f64, String> {
        let mut left = self.unary()?;
        loop {
            self.space();
            if self.chars.get(self.at..self.at + 2) == Some(&['*', '*']) {
                return Err("\"**\" needs a number on its left".into());
            }
            if self.eat("//") {
                left = (left / self.divisor()?).floor();
            } else if self.eat("*") {
                left *= self.unary()?;
            } else if self.eat("/") {
                left /= self.divisor()?;
            } else if self.peek() == Some('%') {
                self.at += 1;
                self.space();
                // "15% * 80": a percent sign that no operand follows.
                if self.peek().is_none_or(|c| matches!(c, '*' | '/' | '+' | '-' | ')' | ',')) {
                    left /= 100.0;
                } else {
                    let d = self.divisor()?;
                    left = left.rem_euclid(d);
                }
            } else {
                return Ok(left);
            }
        }
    }

    fn divisor(&mut self) -> Result<f64, String> {
        match self.unary()? {
            0.0 => Err("division by zero".into()),
            d => Ok(d),
        }
    }

    fn unary(&mut self) -> Result<f64, String> {
        if self.eat("-") {
            self.deeper(|p| Ok(-p.unary()?))
        } else if self.eat("+") {
            self.deeper(Self::unary)
        } else {
            self.power()
        }
    }

    fn power(&mut self) -> Result<f64, String> {
        let base = self.atom()?;
        if self.eat("**") || self.eat("^") {
            let exponent = self.deeper(Self::unary)?;
            return Ok(base.powf(exponent));
        }
        Ok(base)
    }

    fn atom(&mut self) -> Result<f64, String> {
        self.space();
        if self.eat("(") {
            let value = self.deeper(Self::sum)?;
            return if self.eat(")") { Ok(value) } else { Err("a closing parenthesis is missing".into()) };
        }
        match self.peek() {
            Some(c) if c.is_ascii_digit() || c == '.' => self.number(),
            Some(c) if c.is_ascii_alphabetic() => self.name(),
            Some(c) => Err(format!("unexpected \"{c}\" at position {}", self.at + 1)),
            None => Err("the expression ends where a number should stand".into()),
        }
    }

    fn number(&mut self) -> Result<f64, String> {
        let start = self.at;
        while let Some(c) = self.peek() {
            let thousands = c == ',' && self.group_of_three(self.at + 1);
            let exponent =
                matches!(c, 'e' | 'E') && self.chars.get(self.at + 1).is_some_and(|d| d.is_ascii_digit() || matches!(d, '+' | '-'));
            if c.is_ascii_digit() || c == '.' || c == '_' || thousands {
                self.at += 1;
            } else if exponent {
                self.at += 2;
            } else {
                break;
            }
        }
        let text: String = self.chars[start..self.at].iter().filter(|c| !matches!(c, ',' | '_')).collect();
        text.parse().map_err(|_| format!("\"{text}\" is not a number"))
    }

    // "1,250" is one number, "max(1, 2)" and "max(1,2)" are two: a group has exactly three digits.
    fn group_of_three(&self, from: usize) -> bool {
        let digits = self.chars[from.min(self.chars.len())..].iter().take_while(|c| c.is_ascii_digit()).count();
        digits == 3 && self.depth == 0
    }

    fn name(&mut self) -> Result<f64, String> {
        let start = self.at;
        while self.peek().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') {
            self.at += 1;
        }
        let name: String = self.chars[start..self.at].iter().collect();
        match name.as_str() {
            "pi" => return Ok(std::f64::consts::PI),
            "e" => return Ok(std::f64::consts::E),
            _ => {}
        }
        if !self.eat("(") {
            return Err(format!("\"{name}\" is neither a number nor a function"));
        }
        let mut args = Vec::new();
        while !self.eat(")") {
            args.push(self.deeper(Self::sum)?);
            if !self.eat(",") && self.peek() != Some(')') {
                return Err("a closing parenthesis is missing".into());
            }
        }
        apply(&name, &args)
    }
}

fn apply(name: &str, args: &[f64]) -> Result<f64, String> {
    match (name, args) {
        ("sqrt", [x]) if *x < 0.0 => Err("the square root of a negative number".into()),
        ("sqrt", [x]) => Ok(x.sqrt()),
        ("abs", [x]) => Ok(x.abs()),
        ("floor", [x]) => Ok(x.floor()),
        ("ceil", [x]) => Ok(x.ceil()),
        ("round", [x]) => Ok(x.round()),
        ("round", [x, digits]) if (0.0..=12.0).contains(digits) => {
            let scale = 10f64.powf(digits.trunc());
            Ok((x * scale).round() / scale)
        }
        ("min", [first, rest @ ..]) => Ok(rest.iter().copied().fold(*first, f64::min)),
        ("max", [first, rest @ ..]) => Ok(rest.iter().copied().fold(*first, f64::max)),
        ("sqrt" | "abs" | "floor" | "ceil" | "round" | "min" | "max", _) => Err(format!("wrong number of arguments for {name}")),
        _ => Err(format!("there is no function \"{name}\"; there are sqrt, abs, round, floor, ceil, min, max")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_comes_out_as_people_write_it() {
        for (expression, wanted) in [
            ("17 * 23", "391"),
            ("0.1 + 0.2", "0.3"),
            ("2 ** 10", "1024"),
            ("-2 ^ 2", "-4"),
            ("7 // 2", "3"),
            ("-7 % 3", "2"),
            ("15% * 80", "12"),
            ("1,250 * 2", "2500"),
            ("max(1,2, 3)", "3"),
            ("sqrt(2)", "1.414213562373"),
            ("(1+2)*3", "9"),
            ("10 / 4", "2.5"),
            ("1e3", "1000"),
            ("0 - 0", "0"),
            ("round(3.14159, 2)", "3.14"),
        ] {
            assert_eq!(calculate(expression).as_deref(), Ok(wanted), "{expression}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_sentence() {
        for expression in ["", "1 +", "1 / 0", "import os", "((((1", "2 2", "sqrt(-1)", "10 ** 1000", "foo(1)"] {
            assert!(calculate(expression).is_err(), "{expression}");
        }
        assert!(calculate(&"(".repeat(500)).is_err());
        assert!(calculate(&"1".repeat(2000)).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[-+*/%^0-9a-z(). ,]{0,60}") {
            let _ = calculate(&text);
        }
    }
}
