//! Death at named places and the loss of files. The next start repairs what there is to repair: results are those of
//! the query over what the shards hold, nothing is lost, and no key goes back to an older value.

mod points;
mod power;
mod run;
