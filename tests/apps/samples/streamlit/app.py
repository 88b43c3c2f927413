import streamlit as st

st.title("An application")
if st.button("press"):
    st.write(f"pressed {6 * 7}")
