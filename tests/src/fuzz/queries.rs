//! A random query of each class of SQL. To add a class, write a function in one of the files here and list it in
//! [`CLASSES`].

mod joins;
mod pen;

pub use pen::{Pen, Query};

/// Makes a query of one class.
pub type Class = fn(&mut Pen<'_>) -> Query;

/// Every class by a name, which names of joins begin with.
pub const CLASSES: &[(&str, Class)] = &[
    ("projection", joins::projection),
    ("inner", joins::inner),
    ("inner-residual", joins::inner_residual),
    ("range", joins::range),
];
