library(shiny)

page <- fluidPage(actionButton("button", "press"), textOutput("text"))
server <- function(input, output) {
  output$text <- renderText({
    req(input$button)
    paste("pressed", input$button * 42)
  })
}
shinyApp(page, server)
