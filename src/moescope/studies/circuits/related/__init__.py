"""How several tasks' circuits are related: alike or not, of use to a further task, apart where texts carry two labels."""
