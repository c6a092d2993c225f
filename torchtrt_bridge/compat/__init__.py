"""APIs of other packages on top of this one."""
