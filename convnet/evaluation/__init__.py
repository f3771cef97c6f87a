"""What does a trained net say of pictures, and how often is it right?"""
