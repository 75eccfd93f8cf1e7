"""Speed and memory of the library, beside other ways to compute the same bounds."""
