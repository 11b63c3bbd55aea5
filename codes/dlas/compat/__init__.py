"""What other libraries need before they can be imported."""
