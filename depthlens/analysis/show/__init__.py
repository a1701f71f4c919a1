"""What people see: sentences, answers that cannot be read, and the view of the answers that break."""
