//! A random query of each class of SQL. To add a class, write a function in one of the files here and list it in
//! [`CLASSES`]. Queries whose rows SQLite leaves open are no use: an order must be total, sums must be exact. Equal
//! numbers that stand for each other may be spelled in several ways.

mod groups;
mod joins;
mod lists;
mod names;
mod pen;
mod reached;
mod sets;
mod subqueries;
mod windows;

pub use pen::{INNER, Pen, Query};

/// Makes a query of one class.
pub type Class = fn(&mut Pen<'_>) -> Query;

/// Every class by a name, with which names of joins begin.
pub const CLASSES: &[(&str, Class)] = &[
    ("projection", joins::projection),
    ("inner", joins::inner),
    ("inner-residual", joins::inner_residual),
    ("range", joins::range),
    ("left", joins::left),
    ("right", joins::right),
    ("full", joins::full),
    ("anti", joins::anti),
    ("self", joins::self_join),
    ("chain", joins::chain),
    ("star", joins::star),
    ("nested", joins::nested),
    ("group-by", groups::group_by),
    ("group-by-of-join", groups::group_by_of_join),
    ("group-by-nocase", groups::group_by_nocase),
    ("having", groups::having),
    ("global", groups::global),
    ("accumulated", groups::accumulated),
    ("accumulated-of-groups", groups::accumulated_of_groups),
    ("distinct", groups::distinct),
    ("union", sets::union),
    ("union-all", sets::union_all),
    ("except", sets::except),
    ("intersect", sets::intersect),
    ("mixed-sets", sets::mixed),
    ("exists", subqueries::exists),
    ("in", subqueries::within),
    ("scalar", subqueries::scalar),
    ("uncorrelated", subqueries::uncorrelated),
    ("in-from", subqueries::in_from),
    ("aggregated-in-from", subqueries::aggregated_in_from),
    ("cte", subqueries::cte),
    ("recursive", subqueries::recursive),
    ("values", subqueries::values),
    ("partitioned", windows::partitioned),
    ("whole", windows::whole),
    ("top-of-group", windows::top_of_group),
    ("limit", windows::limit),
    ("limit-in-from", windows::limit_in_from),
    ("each", lists::each),
    ("each-join", lists::each_join),
    ("each-grouped", lists::each_grouped),
    ("each-exists", lists::each_exists),
    ("tree", lists::tree),
    ("join-of-group-by", reached::group_by),
    ("join-of-having", reached::having),
    ("join-of-nested-groups", reached::nested),
    ("join-of-distinct", reached::distinct),
    ("join-of-union", reached::union),
    ("join-of-except", reached::except),
    ("join-of-intersect", reached::intersect),
    ("join-of-partition", reached::partition),
    ("left-join-of-groups", reached::left_joined),
    ("groups-read-twice", reached::read_twice),
    ("asked-of-groups", reached::asked),
    ("composite-of-a-group", reached::composite),
    ("of-a-group", reached::of_a_group),
    ("of-a-partition", reached::of_a_partition),
    ("alias-of-a-topic", names::alias_of_a_topic),
    ("cte-hides-a-topic", names::cte_hides_a_topic),
    ("inner-alias-hides-outer", names::inner_alias_hides_outer),
    ("of-a-join", names::of_a_join),
];

#[cfg(test)]
mod tests;
