//! From the text of a token to [`Claims`](claims::Claims), or to the rule that it breaks.

pub mod target;
