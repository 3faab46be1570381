"""Foreign code (plugins, networks of users) kept from changing anything but its own result."""
