"""Pure decisions: no clock, no input or output, no framework. Everything here is a function of its arguments."""
