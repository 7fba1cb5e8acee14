"""What a tiny set gives away: whose images it was made from, and whether it shows copies of them."""
