//! What an operation's arguments are as words of a mailbox.

use crate::decode::{DecodeError, Field};
use crate::layout::ARG_COUNT;
use crate::parameter::{Convert, Length, Order, Sharing, Width};
use crate::pattern::Pattern;

/// The words of arguments, as they are written one after the other.
#[derive(Default)]
pub(crate) struct Writer {
    pub(crate) words: [u64; ARG_COUNT],
    pub(crate) used: usize,
}

impl Writer {
    fn put(&mut self, word: u64) {
        self.words[self.used] = word;
        self.used += 1;
    }
}

/// The words of arguments, as they are read one after the other.
pub(crate) struct Reader {
    words: [u64; ARG_COUNT],
    used: usize,
}

impl Reader {
    pub(crate) fn new(words: [u64; ARG_COUNT]) -> Self {
        Self { words, used: 0 }
    }

    fn take(&mut self) -> u64 {
        let word = self.words[self.used];
        self.used += 1;
        word
    }
}

/// A type that arguments can have.
pub(crate) trait Argument: Sized {
    /// How many words it takes.
    const WORDS: usize = 1;
    fn write(self, to: &mut Writer);
    fn read(from: &mut Reader) -> Result<Self, DecodeError>;
}

impl Argument for u64 {
    fn write(self, to: &mut Writer) {
        to.put(self);
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        Ok(from.take())
    }
}

impl Argument for u32 {
    fn write(self, to: &mut Writer) {
        to.put(self.into());
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        let word = from.take();
        u32::try_from(word).map_err(|_| DecodeError::new(Field::Register, word))
    }
}

impl<const N: usize> Argument for [u64; N] {
    const WORDS: usize = N;
    fn write(self, to: &mut Writer) {
        self.into_iter().for_each(|word| to.put(word));
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        Ok(core::array::from_fn(|_| from.take()))
    }
}

impl Argument for Pattern {
    fn write(self, to: &mut Writer) {
        to.put(self.0);
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Pattern(from.take()))
    }
}

impl Argument for Length {
    fn write(self, to: &mut Writer) {
        to.put(self.0);
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        match from.take() {
            length if length <= Length::MAX.0 => Ok(Length(length)),
            word => Err(DecodeError::new(Field::Length, word)),
        }
    }
}

/// Types of which each value has a word of its own.
macro_rules! choices {
    ($($type:ty as $field:ident: $($value:expr => $word:expr),+;)+) => {$(
        impl Argument for $type {
            fn write(self, to: &mut Writer) {
                to.put(self as u64);
            }
            fn read(from: &mut Reader) -> Result<Self, DecodeError> {
                match from.take() {
                    $($word => Ok($value),)+
                    word => Err(DecodeError::new(Field::$field, word)),
                }
            }
        }
    )+};
}

choices! {
    bool as Present: false => 0, true => 1;
    Width as Width: Width::B1 => 1, Width::B2 => 2, Width::B4 => 4, Width::B8 => 8;
    Sharing as Sharing: Sharing::Shared => 0, Sharing::Private => 1;
    Order as Order: Order::NotPresentFirst => 0, Order::InPlace => 1;
}

impl Argument for Convert {
    const WORDS: usize = 5;
    fn write(self, to: &mut Writer) {
        let Convert { gva, gpa, pages, to: sharing, order } = self;
        [gva, gpa, pages].write(to);
        sharing.write(to);
        order.write(to);
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        let [gva, gpa, pages] = Argument::read(from)?;
        Ok(Convert { gva, gpa, pages, to: Argument::read(from)?, order: Argument::read(from)? })
    }
}
