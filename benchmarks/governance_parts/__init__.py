"""Parts of `hansa bench governance`."""
