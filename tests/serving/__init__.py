"""Stand-ins for a server: a C++ program with its loader, and one that speaks its protocols."""
