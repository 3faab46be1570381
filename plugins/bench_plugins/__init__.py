"""The methods that ship with exitbench, a plugin each, registered like anyone else's."""
