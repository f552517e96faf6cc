//! Loss of files or of their newest part, as a machine loses them that loses its power.
