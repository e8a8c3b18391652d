; The editor's entries, where programs look for them, and how the screen begins.

*= $e500
iobase: ldx #<cia1
        ldy #>cia1
        rts
*= $e505
screen: ldx #columns
        ldy #rows
        rts
; Carry: X and Y become the cursor's row and place; else it is put there.
*= $e50a
plot:   bcs 1f
        stx tblx
        sty pntr
        jsr setline
1:      ldx tblx
        ldy pntr
        rts

startscreen:
        jsr chipdefaults
        lda #0
        sta mode
        sta blnon
        lda #<choosetable
        sta keylog
        lda #>choosetable
        sta keylog+1
        lda #10
        sta xmax
        sta delay
        lda #14
        sta color
        lda #4
        sta kount
        lda #12
        sta blnct
        sta blnsw
; startscreen goes on here.
*= $e544
clear:  ldx #rows-1
1:      lda rowhigh,x
        ora #$80
        sta ldtb1,x
        jsr clearrow
        dex
        bpl 1b
        lda #$80
        sta ldtb1+rows
        bne home
*= $e566
home:   lda #0
        sta pntr
        sta tblx
; home goes on here.
*= $e56c
        jmp setline

; The usual devices, and the video chip as it begins.
*= $e5a0
chipdefaults:
        lda #3
        sta dflto
        lda #0
        sta dfltn
        ldx #chipvaluesend-chipvalues
1:      lda chipvalues-1,x
        sta vic-1,x
        dex
        bne 1b
        rts
*= $e5b4
        jmp takekey
*= $e716
        jmp printscreen
*= $e8ea
        jmp scroll
*= $e9ff
        jmp clearrow
