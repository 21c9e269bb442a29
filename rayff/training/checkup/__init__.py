"""What the doctor looks at where no Ray is needed: the machine, its software, its places."""
