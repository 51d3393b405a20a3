"""The field's standard methods, which papers compare with and users expect; without claims of their own."""
