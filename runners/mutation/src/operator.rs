//! The ways in which a place in the source can be broken.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How a place is broken. The set follows what the literature on mutation testing of C uses (statement deletion,
/// condition negation, boundary and constant replacement), with the kernel's error returns in it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operator {
    /// An atom of a condition is negated.
    Negate,
    /// The bound of a comparison moves by one: `<` for `<=`.
    Bound,
    /// A call or an assignment is left out.
    Drop,
    /// An error becomes success: 0.
    Succeed,
    /// An error becomes another one.
    OtherErrno,
    /// One operand of an OR is left out.
    Bit,
    /// Two arguments of one type that follow each other change places.
    Swap,
    /// A size, an index or a frame number is one more.
    PlusOne,
    /// It is one less.
    MinusOne,
    /// A barrier is left out.
    Barrier,
    /// The condition of an `if` never holds.
    Never,
    /// The condition of an `if` always holds.
    Always,
    /// A `return` returns `-EFAULT`.
    Efault,
    /// A function does nothing and returns 0.
    Empty,
}

impl Operator {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Negate,
        Self::Bound,
        Self::Drop,
        Self::Succeed,
        Self::OtherErrno,
        Self::Bit,
        Self::Swap,
        Self::PlusOne,
        Self::MinusOne,
        Self::Barrier,
        Self::Never,
        Self::Always,
        Self::Efault,
        Self::Empty,
    ];

    /// Its name, as in the names of mutants.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Negate => "negate",
            Self::Bound => "bound",
            Self::Drop => "drop",
            Self::Succeed => "succeed",
            Self::OtherErrno => "other-errno",
            Self::Bit => "bit",
            Self::Swap => "swap",
            Self::PlusOne => "plus-one",
            Self::MinusOne => "minus-one",
            Self::Barrier => "barrier",
            Self::Never => "never",
            Self::Always => "always",
            Self::Efault => "efault",
            Self::Empty => "empty",
        }
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Operator {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|operator| operator.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("there is no operator {name}: take one of {names}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_files_hold_too() {
        for operator in Operator::ALL {
            assert_eq!(serde_json::to_value(operator).unwrap(), operator.name());
            assert_eq!(operator.name().parse(), Ok(operator));
        }
        assert!("explode".parse::<Operator>().unwrap_err().contains("negate, bound"));
    }
}
