//! Death at named places and the loss of files. The next start repairs the rest: results are those of
//! the query over the rows in the shards, no acknowledged message is lost, and no key goes back to an older value.

mod points;
mod power;
mod run;
